"""Request bodies, as OpenAI, vLLM and SGLang write them, and what they mean here.

Fields of OpenAI's that would change the answer but are not supported are taken only with the value that
changes nothing; unknown fields are refused, so that no wish is dropped in silence. A null wishes for nothing.
"""

import base64
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from serving.api.body import Body, Number, Text
from serving.api.drawing import Alternatives, Drawing, decoding_of
from serving.config import ServiceConfig
from serving.engine.records import CompressionWish, Decoding, EngineRequest, Extra, Message
from serving.errors import ApiError, invalid
from serving.media.records import Sampling, VideoInput
from serving.media.urls import parse_video_url


class TextPart(Body):
    """Text of a message."""

    type: Literal["text"]
    text: Text


class VideoUrl(Body):
    """Where a video lies; the other fields are SGLang's."""

    url: Text = Field(description="data:video/...;base64, https: or file:, as this service is set up")
    num_frames: Annotated[int, Field(ge=-1)] | None = Field(None, description="frames to sample; -1: all allowed")
    fps: Annotated[Number, Field(gt=0)] | None = Field(None, description="frames per second to sample")
    max_frames: Annotated[int, Field(ge=1)] | None = Field(None, description="cap of the frames sampled")


class VideoPart(Body):
    """A video in a message."""

    type: Literal["video_url"]
    video_url: VideoUrl


class EmbedsPart(Body):
    """vLLM's: rows in place of text, which the language model reads as they are."""

    type: Literal["prompt_embeds"]
    data: Annotated[Text, Field(min_length=1)] = Field(description="base64 of torch.save of (tokens, width)")


Part = Annotated[TextPart | VideoPart | EmbedsPart, Field(discriminator="type")]


class ChatMessage(Body):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(min_length=1)]
    name: Text | None = Field(None, description="not used")


class VideoReading(Body):
    """vLLM's ``media_io_kwargs.video``."""

    num_frames: Annotated[int, Field(ge=-1)] | None = None
    fps: Annotated[Number, Field(gt=0)] | None = None


class MediaReading(Body):
    """vLLM's ``media_io_kwargs``."""

    video: VideoReading = VideoReading()


class Asking(Body):
    """What both endpoints share."""

    model: Annotated[Text, Field(min_length=1, max_length=128)]
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    compression: CompressionWish = CompressionWish()
    media_io_kwargs: MediaReading = MediaReading()


class CompressRequest(Asking):
    """Body of ``POST /v1/compress``."""

    include: list[Extra] = Field([], max_length=3, description="what to send besides indices, budgets and scores")


class ChatRequest(Asking, Drawing):
    """Body of ``POST /v1/chat/completions``."""

    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Alternatives | None = Field(None, description="alternatives told beside each token")
    # Taken only where they change nothing.
    modalities: list[Literal["text"]] | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: bool | None = None  # of no tools
    # Never change an answer.
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    metadata: dict[Text, Text] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None

    @model_validator(mode="after")
    def _one_length(self) -> "ChatRequest":
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ValueError("max_tokens and max_completion_tokens differ: give one")
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs without logprobs: leave it out or set logprobs")
        return self


class CompletionRequest(Drawing):
    """Body of ``POST /v1/completions``: text that the model goes on with, without a chat template."""

    model: Annotated[Text, Field(min_length=1, max_length=128)]
    prompt: Annotated[Text, Field(min_length=1)] | Annotated[list[Text], Field(min_length=1, max_length=1)]
    logprobs: Alternatives | None = Field(None, description="alternatives told beside each token")
    # Taken only where they change nothing.
    echo: Literal[False] | None = None
    suffix: Annotated[str, Field(max_length=0)] | None = None
    best_of: Literal[1] | None = None


def engine_request(
    body: ChatRequest | CompressRequest, config: ServiceConfig
) -> tuple[EngineRequest, list[VideoInput]]:
    """What the engine is to do, and the videos to read for it, in the order of the messages.

    Raises:
        ApiError: too much text, too many videos or messages, an answer that is too long, a URL that is refused.
    """
    if len(body.messages) > config.api.max_messages:
        raise invalid("messages", f"{len(body.messages)} messages; at most {config.api.max_messages} are taken")
    videos: list[VideoInput] = []
    embeds: list[bytes] = []
    messages: list[Message] = []
    characters = 0
    for place, message in enumerate(body.messages):
        content: list[dict[str, str]] = []
        for part in _parts(message):
            if isinstance(part, TextPart):
                characters += len(part.text)
                content.append({"type": "text", "text": part.text})
            elif isinstance(part, EmbedsPart):
                embeds.append(_decoded(part, place))
                content.append({"type": "embeds"})
            else:
                videos.append(_video(part.video_url, body.media_io_kwargs.video, config, place))
                content.append({"type": "video"})
        messages.append({"role": "system" if message.role == "developer" else message.role, "content": content})
        _check_role(message, content, place)
    if characters > config.api.max_text_chars:
        raise invalid("messages", f"{characters} characters of text; at most {config.api.max_text_chars} are taken")
    if len(videos) > config.api.max_videos:
        raise invalid("messages", f"{len(videos)} videos; at most {config.api.max_videos} are taken")
    request = EngineRequest(
        model=body.model,
        messages=tuple(messages),
        embeds=tuple(embeds),
        compression=body.compression,
        decoding=_decoding(body, config) if isinstance(body, ChatRequest) else None,
        extras=frozenset(body.include) if isinstance(body, CompressRequest) else frozenset(),
        time_left_s=config.api.request_timeout_s,
    )
    return request, videos


def _decoded(part: EmbedsPart, message: int) -> bytes:
    try:
        return base64.b64decode(part.data, validate=True)
    except ValueError:
        raise invalid(f"messages.{message}.content.prompt_embeds", "data is no base64") from None


def _parts(message: ChatMessage) -> list[TextPart | VideoPart | EmbedsPart]:
    if isinstance(message.content, str):
        return [TextPart(type="text", text=message.content)]
    return message.content


def _check_role(message: ChatMessage, content: list[dict[str, str]], place: int) -> None:
    if message.role != "user" and any(part["type"] == "video" for part in content):
        raise invalid(f"messages.{place}", "videos belong into messages of role 'user'")


def _video(place: VideoUrl, reading: VideoReading, config: ServiceConfig, message: int) -> VideoInput:
    sampling = Sampling(
        num_frames=place.num_frames if place.num_frames is not None else reading.num_frames,
        fps=place.fps if place.fps is not None else reading.fps,
        max_frames=place.max_frames,
    )
    try:
        return parse_video_url(place.url, sampling, config.media)
    except ApiError as error:
        error.param = f"messages.{message}.content.video_url"
        raise


def _decoding(body: ChatRequest, config: ServiceConfig) -> Decoding:
    return decoding_of(
        body,
        config,
        max_tokens=body.max_tokens or body.max_completion_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def completion_request(body: CompletionRequest, config: ServiceConfig) -> EngineRequest:
    """What the engine is to do.

    Raises:
        ApiError: too much text, or an answer that is too long.
    """
    text = body.prompt if isinstance(body.prompt, str) else body.prompt[0]
    if len(text) > config.api.max_text_chars:
        raise invalid("prompt", f"{len(text)} characters; at most {config.api.max_text_chars} are taken")
    return EngineRequest(
        model=body.model,
        messages=(),
        prompt=text,
        decoding=decoding_of(body, config, max_tokens=body.max_tokens, logprobs=body.logprobs),
        time_left_s=config.api.request_timeout_s,
    )
