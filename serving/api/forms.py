"""Answers in OpenAI's two forms, whole and streamed: chat completions and text completions."""

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from serving.api.responses import (
    Alternative,
    AssistantMessage,
    ChatCompletion,
    ChatLogprobs,
    ChatToken,
    Choice,
    TextChoice,
    TextCompletion,
    TextLogprobs,
    Usage,
    server_event,
)
from serving.engine.records import Answer, Delta, EngineRequest, Finished, TokenLogprob

Whole = TypeVar("Whole", ChatCompletion, TextCompletion)


class Form(ABC, Generic[Whole]):
    """One answered request; its id and time are the same in all events of a stream."""

    kind: str
    prefix: str

    def __init__(self, asked: EngineRequest) -> None:
        assert asked.decoding is not None
        self.model = asked.model
        self.name = f"{self.prefix}-{secrets.token_hex(12)}"
        self.created = int(time.time())
        self._answers = asked.decoding.n
        self._told = asked.decoding.logprobs is not None

    @abstractmethod
    def whole(self, answer: Answer, usage: Usage) -> Whole:
        """The response body."""

    @abstractmethod
    def opening(self) -> list[str]:
        """The first events of a stream."""

    @abstractmethod
    def delta(self, delta: Delta) -> str:
        """One event of a stream."""

    @abstractmethod
    def closing(self, finished: Finished) -> list[str]:
        """The events with the reasons why the answers ended."""

    def usage(self, usage: Usage) -> str:
        """The event that OpenAI's ``include_usage`` asks for."""
        return self._event([], usage=usage.model_dump())

    def _event(self, choices: list[dict[str, Any]], **more: object) -> str:
        head = {"id": self.name, "object": self.kind, "created": self.created, "model": self.model}
        return server_event(head | {"choices": choices} | more)


class ChatForm(Form[ChatCompletion]):
    """``/v1/chat/completions``."""

    kind, prefix = "chat.completion.chunk", "chatcmpl"

    def whole(self, answer: Answer, usage: Usage) -> ChatCompletion:
        """The response body."""
        choices = [
            Choice(
                index=index,
                message=AssistantMessage(content=text),
                finish_reason=reason,
                logprobs=self._logprobs(tokens),
            )
            for index, (text, reason, tokens) in enumerate(
                zip(answer.texts, answer.finished.reasons, answer.tokens, strict=True)
            )
        ]
        return ChatCompletion(id=self.name, created=self.created, model=self.model, choices=choices, usage=usage)

    def opening(self) -> list[str]:
        """The role, for each answer."""
        return [self._chunk(index, {"role": "assistant", "content": ""}) for index in range(self._answers)]

    def delta(self, delta: Delta) -> str:
        """Further text."""
        logprobs = self._logprobs(delta.tokens) if delta.tokens else None
        return self._chunk(delta.index, {"content": delta.text}, logprobs=logprobs)

    def closing(self, finished: Finished) -> list[str]:
        """One event an answer."""
        return [self._chunk(index, {}, reason) for index, reason in enumerate(finished.reasons)]

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> ChatLogprobs | None:
        if not self._told:
            return None
        told = [
            ChatToken(
                token=token.text,
                logprob=token.logprob,
                bytes=list(token.text.encode()),
                top_logprobs=[
                    Alternative(token=other.text, logprob=other.logprob, bytes=list(other.text.encode()))
                    for other in token.top
                ],
            )
            for token in tokens
        ]
        return ChatLogprobs(content=told)

    def _chunk(
        self, index: int, delta: dict[str, str], reason: str | None = None, logprobs: ChatLogprobs | None = None
    ) -> str:
        told = None if logprobs is None else logprobs.model_dump()
        return self._event([{"index": index, "delta": delta, "finish_reason": reason, "logprobs": told}])


class TextForm(Form[TextCompletion]):
    """``/v1/completions``."""

    kind, prefix = "text_completion", "cmpl"

    def __init__(self, asked: EngineRequest) -> None:
        super().__init__(asked)
        self._offsets = [0] * self._answers  # characters of each answer's tokens so far

    def whole(self, answer: Answer, usage: Usage) -> TextCompletion:
        """The response body."""
        choices = [
            self._choice(index, text, reason, tokens)
            for index, (text, reason, tokens) in enumerate(
                zip(answer.texts, answer.finished.reasons, answer.tokens, strict=True)
            )
        ]
        return TextCompletion(id=self.name, created=self.created, model=self.model, choices=choices, usage=usage)

    def opening(self) -> list[str]:
        """Nothing: the first text opens."""
        return []

    def delta(self, delta: Delta) -> str:
        """Further text."""
        return self._event([self._choice(delta.index, delta.text, None, delta.tokens).model_dump()])

    def closing(self, finished: Finished) -> list[str]:
        """One event an answer."""
        return [
            self._event([self._choice(index, "", reason, ()).model_dump()])
            for index, reason in enumerate(finished.reasons)
        ]

    def _choice(self, index: int, text: str, reason: Any, tokens: Sequence[TokenLogprob]) -> TextChoice:  # noqa: ANN401
        return TextChoice(index=index, text=text, finish_reason=reason, logprobs=self._logprobs(index, tokens))

    def _logprobs(self, index: int, tokens: Sequence[TokenLogprob]) -> TextLogprobs | None:
        if not self._told or not tokens:
            return None
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token.text)
        return TextLogprobs(
            tokens=[token.text for token in tokens],
            token_logprobs=[token.logprob for token in tokens],
            top_logprobs=[{other.text: other.logprob for other in token.top} for token in tokens],
            text_offset=offsets,
        )
