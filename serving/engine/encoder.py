"""Messages, videos and rows of a request into one encoded prompt."""

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from cacovid.errors import UserError
from cacovid.models.adapter import VideoLLM
from cacovid.models.chunks import watch_in_chunks
from cacovid.models.encoded import Encoded, VideoFeatures
from serving.engine.cache import FeatureCache
from serving.engine.records import EngineRequest
from serving.engine.tensor_file import read_rows
from serving.errors import invalid, room_on_disk
from serving.media.records import Clip


class Encoder:
    """Encodes for one Video-LLM, whose tower runs once for each recent clip. For one thread."""

    def __init__(self, video_llm: VideoLLM, cache_bytes: int) -> None:
        self._llm = video_llm
        self._cache = FeatureCache(cache_bytes)
        tokenizer = video_llm.processor.tokenizer
        added = [str(token) for token in tokenizer.added_tokens_decoder.values() if token.special]
        placeholder = str(tokenizer.convert_ids_to_tokens(video_llm.placeholder_id))
        self._placeholders = (placeholder, str(video_llm.processor.video_token))
        self._control = tuple(dict.fromkeys([*added, *self._placeholders]))

    def encode(self, request: EngineRequest, clips: Sequence[Clip], between: Callable[[int], object]) -> Encoded:
        """The prompt; ``between`` is called after each chunk of a clip in chunks, with the tokens of the whole clip.

        Raises:
            ApiError: control tokens in a text, rows that do not fit, clips of several sizes, no word at all, a full
                disk.
        """
        self._check_text(request)
        try:
            encoded = self._encoded(request, clips, between)
        except UserError as error:
            raise invalid("messages", str(error)) from error
        if encoded.length == 0:
            raise invalid("prompt", "the text holds no word that the model knows: write some")
        return encoded

    def _encoded(self, request: EngineRequest, clips: Sequence[Clip], between: Callable[[int], object]) -> Encoded:
        llm = self._llm
        if request.prompt is not None:
            return llm.encode_text(request.prompt)
        watched = iter([self._cache.get(clip.key, partial(self._watched, clip, between)) for clip in clips])
        if not request.embeds:
            return llm.encode_chat(request.messages, list(watched))
        given = iter([llm.rows_as_clip(_rows(content).to(llm.device, llm.dtype)) for content in request.embeds])
        kinds = [part["type"] for message in request.messages for part in message["content"] if part["type"] != "text"]
        mark = {"type": "text", "text": str(llm.processor.video_token)}  # no markers of a clip around it
        messages = [
            {**message, "content": [mark if part["type"] == "embeds" else part for part in message["content"]]}
            for message in request.messages
        ]
        return llm.encode_chat(messages, [next(given if kind == "embeds" else watched) for kind in kinds])

    def _watched(self, clip: Clip, between: Callable[[int], object]) -> VideoFeatures:
        if clip.chunk is None:
            return self._llm.watch(clip.frames, fps=clip.fps)

        def after(seen: VideoFeatures) -> None:
            between(seen.grid.per_frame * len(clip.frames))  # frames are read one by one

        with room_on_disk():
            return watch_in_chunks(self._llm, clip.chunks(), fps=clip.fps, after=after)

    def _check_text(self, request: EngineRequest) -> None:
        """Refuse control tokens in messages; the text of a text completion may hold all but placeholders of videos."""
        for message in request.messages:
            texts = [part["text"] for part in message["content"] if part["type"] == "text"]
            # Also one cut into several parts, which chat templates put together, some without the spaces around them.
            self._check_words("messages", self._control, ("".join(texts), "".join(text.strip() for text in texts)))
        if request.prompt is not None:
            self._check_words("prompt", self._placeholders, (request.prompt,))

    def _check_words(self, field: str, tokens: Sequence[str], texts: Sequence[str]) -> None:
        found = [token for token in tokens if any(token in text for text in texts)]
        if found:
            raise invalid(field, f"the text holds the model's control token {found[0]!r}: remove it")


def _rows(content: bytes) -> Tensor:
    try:
        return read_rows(content)
    except ValueError as error:
        raise invalid("messages", f"prompt_embeds: {error}") from error
