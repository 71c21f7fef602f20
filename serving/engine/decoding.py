"""Text of answers from their tokens, as they come."""

from collections.abc import Sequence
from typing import Any

from serving.engine.prompts import Prompt
from serving.engine.records import Decoding, Delta, Failed, Finished, FinishReason, Likely, Started, Token, TokenLogprob
from serving.errors import ApiError


class TextAssembler:
    """Text of one answer, token by token, cut before the first stop string.

    Text is held back while it may still be the beginning of a stop string or of a character.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:  # noqa: ANN401
        self._tokenizer = tokenizer
        self._stop = stop
        self._tokens: list[int] = []
        self._begin = self._read = 0  # tokens before _begin are settled; up to _read they have been turned into text
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that became certain with ``token``."""
        self._tokens.append(token)
        known = self._decode(self._tokens[self._begin : self._read])
        whole = self._decode(self._tokens[self._begin :])
        if whole.endswith("\ufffd"):
            return ""  # in the middle of a character
        self._begin, self._read = self._read, len(self._tokens)
        return self._settle(self._held + whole[len(known) :])

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        rest = self._decode(self._tokens[self._begin :])[len(self._decode(self._tokens[self._begin : self._read])) :]
        text = self._settle(self._held + rest)
        if self.stopped:
            return text
        text, self._held = text + self._held, ""
        return text

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))

    def _settle(self, text: str) -> str:
        ends = [text.find(stop) for stop in self._stop if stop in text]
        if ends:
            self.stopped = True
            self._held = ""
            return text[: min(ends)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest beginning of ``stop`` that ``text`` ends with."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)


class Row:
    """One answer that is being written.

    Args:
        answering: the request that it belongs to.
        index: of the answer among those of its request.
        decoding: its own record, with ``n`` 1.
        tokenizer: turns tokens into text.
    """

    def __init__(self, answering: "Answering", index: int, decoding: Decoding, tokenizer: Any) -> None:  # noqa: ANN401
        self.answering = answering
        self.decoding = decoding
        self.tokens: list[int] = []
        self.reason: FinishReason | None = None  # None while it is being written
        self._index = index
        self._tokenizer = tokenizer
        self._text = TextAssembler(tokenizer, decoding.stop)

    @property
    def prompt(self) -> Prompt:
        """What it answers."""
        return self.answering.prompt

    @property
    def done(self) -> bool:
        """It takes no more tokens."""
        return self.reason is not None or self.prompt.job.ended

    def take(self, token: Token, ends: Sequence[int], elapsed_s: float) -> None:
        """One more token, ``elapsed_s`` after its answer began."""
        self.answering.begun(elapsed_s)
        if token.id in ends:
            self._finish("stop", elapsed_s)
            return
        self.tokens.append(token.id)
        self._tell(self._text.push(token.id), token)
        cancelled = self.prompt.job.cancelled.is_set()
        if self._text.stopped or len(self.tokens) >= self.decoding.max_tokens or cancelled:
            self._finish("length", elapsed_s)

    def end(self, reason: FinishReason, elapsed_s: float) -> None:
        """Nothing more comes, and what came is whole."""
        self.answering.begun(elapsed_s)
        self._finish(reason, elapsed_s)

    def fail(self, error: ApiError) -> None:
        """Nothing more comes, for none of its request's answers."""
        self.prompt.job.emit(Failed(error))
        self.answering.rows.clear()

    def _finish(self, reason: FinishReason, elapsed_s: float) -> None:
        if not self._text.stopped:
            self._tell(self._text.finish())
        self.reason = "stop" if self._text.stopped else reason
        self.answering.ended(elapsed_s)

    def _tell(self, text: str, token: Token | None = None) -> None:
        told = () if token is None or self.decoding.logprobs is None else (self._spoken(token),)
        if text or told:
            self.prompt.job.emit(Delta(text, self._index, told))

    def _spoken(self, token: Token) -> TokenLogprob:
        top = tuple(Likely(self._word(other), logprob) for other, logprob in token.top)
        return TokenLogprob(self._word(token.id), token.logprob, top)

    def _word(self, token: int) -> str:
        return str(self._tokenizer.decode([token]))


class Answering:
    """The answers to one request; its last event goes out as soon as all of them are whole.

    Args:
        prompt: of a request with decoding, its tokens selected.
        tokenizer: turns tokens into text.
    """

    def __init__(self, prompt: Prompt, tokenizer: Any) -> None:  # noqa: ANN401
        assert prompt.request.decoding is not None
        self.prompt = prompt
        self.first_token_s = 0.0
        self.rows = [Row(self, *choice, tokenizer) for choice in enumerate(prompt.request.decoding.choices())]

    @property
    def width(self) -> int:
        """Columns that its rows may come to fill."""
        return self.prompt.length + self.rows[0].decoding.max_tokens

    def begun(self, elapsed_s: float) -> None:
        """The first token of any of its rows is there: until then a refusal is the request's only event."""
        if not self.first_token_s:
            self.first_token_s = elapsed_s
            self.prompt.job.emit(Started())

    def ended(self, elapsed_s: float) -> None:
        """One of the rows is whole."""
        reasons = tuple(row.reason for row in self.rows if row.reason is not None)
        if len(reasons) == len(self.rows):
            tokens = sum(len(row.tokens) for row in self.rows)
            self.prompt.job.emit(Finished(reasons, tokens, self.prompt.report(self.first_token_s, elapsed_s)))
            self.rows.clear()  # each holds this, and with it a long video's files until garbage is collected
