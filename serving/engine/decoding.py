"""Drawing tokens for several requests at once, and turning them into text as they come.

Shape legend: B requests, V vocabulary.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, StoppingCriteria

from serving.engine.drawing import Draws
from serving.engine.prompts import Prompt
from serving.engine.records import Decoding, Delta, Failed, Finished, FinishReason, Token
from serving.errors import ApiError


class RowSampler(LogitsProcessor):  # type: ignore[misc]  # transformers is untyped
    """Draws each row with its own temperature, nucleus and noise, so that greedy generation draws."""

    def __init__(self, rows: Sequence[Decoding]) -> None:
        self._draws = [Draws(row) for row in rows]
        self._step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(B, V) scores whose argmax is the token drawn."""
        drawn = scores.clone()
        for place, draws in enumerate(self._draws):
            drawn[place] = draws.scores(scores[place], self._step)
        self._step += 1
        return drawn


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
    """One answer that is being generated. Its last event goes out as soon as it is whole; others may go on.

    Args:
        prompt: of a request with decoding, its tokens selected.
        tokenizer: turns tokens into text.
    """

    def __init__(self, prompt: Prompt, tokenizer: Any) -> None:  # noqa: ANN401
        assert prompt.request.decoding is not None
        self.prompt = prompt
        self.decoding = prompt.request.decoding
        self.done = False
        self._tokens = 0
        self._first_token_s = 0.0
        self._text = TextAssembler(tokenizer, self.decoding.stop)

    def take(self, token: Token, ends: Sequence[int], elapsed_s: float) -> None:
        """One more token of this row, ``elapsed_s`` after its answer began."""
        self._first_token_s = self._first_token_s or elapsed_s
        if token.id in ends:
            self._finish("stop", elapsed_s)
            return
        self._tokens += 1
        self._tell(self._text.push(token.id))
        cancelled = self.prompt.job.cancelled.is_set()
        if self._text.stopped or self._tokens >= self.decoding.max_tokens or cancelled:
            self._finish("length", elapsed_s)

    def fail(self, error: ApiError) -> None:
        """Nothing more comes."""
        self.done = True
        self.prompt.job.emit(Failed(error))

    def _finish(self, reason: FinishReason, elapsed_s: float) -> None:
        if not self._text.stopped:
            self._tell(self._text.finish())
        self.done = True
        report = self.prompt.report(self._first_token_s, elapsed_s)
        self.prompt.job.emit(Finished("stop" if self._text.stopped else reason, self._tokens, report))

    def _tell(self, text: str) -> None:
        if text:
            self.prompt.job.emit(Delta(text))


class RowWatcher(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped
    """Hands each new token to its row as soon as it is drawn, and stops rows that are done."""

    def __init__(self, rows: Sequence[Row], ends: Sequence[int]) -> None:
        self._rows = rows
        self._ends = ends
        self._started = time.perf_counter()

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        """(B,) True for rows that are done."""
        elapsed = time.perf_counter() - self._started
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            if not row.done:
                row.take(Token(token), self._ends, elapsed)
        return torch.tensor([row.done for row in self._rows], device=input_ids.device)
