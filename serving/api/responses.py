"""Response bodies in OpenAI's forms, with this service's fields besides."""

import base64
import json
import secrets
import time
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from cacovid.config import Numbering
from serving.engine.records import Compressed, FinishReason, Report


def _base64(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def _pictures(frames: Sequence[bytes]) -> list[str] | None:
    return [f"data:image/jpeg;base64,{_base64(frame)}" for frame in frames] or None


class StageTimings(BaseModel):
    """Milliseconds by stage; requests answered together share those of common stages."""

    queue_ms: float = Field(description="until the request's batch began")
    fetch_ms: float = Field(description="fetching the videos")
    decode_ms: float = Field(description="decoding their frames")
    encode_ms: float = Field(description="processor, vision tower and projector; short where the video was known")
    policy_ms: float = Field(description="scoring and selecting tokens")
    first_token_ms: float = Field(description="reading the compressed prompt and drawing one token")
    generate_ms: float = Field(description="drawing all tokens")
    total_ms: float = Field(description="from the request's arrival to its answer")


class CompressionUsed(BaseModel):
    """What was done to the video tokens."""

    method: str
    retention: float
    positions: Numbering


class Usage(BaseModel):
    """OpenAI's counts, which are those after compression, and what there was before."""

    prompt_tokens: int = Field(description="what the language model read")
    completion_tokens: int
    total_tokens: int
    prompt_tokens_before: int = Field(description="with all video tokens")
    video_tokens: int = Field(description="before compression")
    video_tokens_kept: int
    compression: CompressionUsed
    timings: StageTimings


class AssistantMessage(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str


class Alternative(BaseModel):
    """A token that the model may have drawn."""

    token: str
    logprob: float = Field(description="by the model itself, before temperature, top_p and penalties")
    bytes: list[int]


class ChatToken(Alternative):
    """A token of an answer."""

    top_logprobs: list[Alternative]


class ChatLogprobs(BaseModel):
    """OpenAI's log-probabilities of a chat completion."""

    content: list[ChatToken]
    refusal: None = None


class Choice(BaseModel):
    """One answer."""

    index: int
    message: AssistantMessage
    finish_reason: FinishReason
    logprobs: ChatLogprobs | None


class TextLogprobs(BaseModel):
    """OpenAI's log-probabilities of a text completion."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(BaseModel):
    """One continuation."""

    index: int
    text: str
    finish_reason: FinishReason | None
    logprobs: TextLogprobs | None


class ChatCompletion(BaseModel):
    """OpenAI's chat completion."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class TextCompletion(BaseModel):
    """OpenAI's text completion."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class Grid(BaseModel):
    """How video tokens lie: index = (frame * rows + row) * columns + column."""

    model_config = ConfigDict(from_attributes=True)

    frames: int = Field(description="temporal steps")
    rows: int
    columns: int


class Compression(BaseModel):
    """Answer of ``POST /v1/compress``."""

    id: str
    object: Literal["compression"] = "compression"
    created: int
    model: str
    grid: Grid
    kept: list[int] = Field(description="indices of the retained video tokens, ascending")
    frame_budgets: list[int] = Field(description="retained tokens of each temporal step")
    token_scores: list[float] | None = Field(description="keep minus drop of every video token; null without a policy")
    frame_scores: list[float] | None
    timestamps: list[float] = Field(description="seconds of the sampled frames")
    frames_per_step: float = Field(description="sampled frames to a temporal step")
    embeddings: Annotated[str | None, BeforeValidator(_base64)] = Field(
        description="base64 of safetensors: embeddings, indices, pinned rows"
    )
    prompt_embeds: Annotated[str | None, BeforeValidator(_base64)] = Field(
        description="base64 of torch.save of (tokens, width), for vLLM's prompt_embeds"
    )
    frames: Annotated[list[str] | None, BeforeValidator(_pictures)] = Field(
        description="the sampled frames as data:image/jpeg"
    )
    usage: Usage


class Model(BaseModel):
    """One model id."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "cacovid"
    policy: str | None = Field(description="kind of the compression policy; null: the model alone")
    trained_steps: int
    methods: list[str] = Field(description="what compression.method may be")
    num_frames: int = Field(description="frames sampled where a request names none")
    positions: str = Field(description="position ids where a request names none")


class Models(BaseModel):
    """Answer of ``GET /v1/models``."""

    object: Literal["list"] = "list"
    data: list[Model]


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """OpenAI's form of an error."""

    error: ErrorDetail


class Health(BaseModel):
    """Answer of the probes."""

    status: str


def usage_of(report: Report, completion_tokens: int, total_s: float) -> Usage:
    """Counts and timings of a finished request."""
    return Usage(
        prompt_tokens=report.prompt_tokens_kept,
        completion_tokens=completion_tokens,
        total_tokens=report.prompt_tokens_kept + completion_tokens,
        prompt_tokens_before=report.prompt_tokens,
        video_tokens=report.video_tokens,
        video_tokens_kept=report.video_tokens_kept,
        compression=CompressionUsed(**vars(report)),
        timings=StageTimings(**report.timings.milliseconds(), total_ms=round(1000 * total_s, 3)),
    )


def compression_of(compressed: Compressed, usage: Usage) -> Compression:
    """The answer of ``POST /v1/compress``; fields of the engine's records that it does not have are left out."""
    fields = vars(compressed.report) | vars(compressed)
    return Compression(id=f"cmpr-{secrets.token_hex(12)}", created=int(time.time()), usage=usage, **fields)


def server_event(body: dict[str, Any]) -> str:
    """One ``data:`` line."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"
