"""Answers that are drawn elsewhere: a task of the replica's loop for each of them."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Generic, TypeVar

from serving.engine.decoding import Answering, Row
from serving.engine.refusals import refusals

Sent = TypeVar("Sent")  # a prompt in the words of what draws


class AnswerTasks(Generic[Sent]):
    """Begins answers from the engine's thread and gives them up when their job is cancelled.

    Args:
        prompt_of: what is sent for a request; ApiError refuses it. In the engine's thread.
        answer: takes one row's tokens until it is done, or fails it. In the loop.
    """

    def __init__(
        self,
        prompt_of: Callable[[Answering], Sent],
        answer: Callable[[Row, Sent], Coroutine[object, object, None]],
    ) -> None:
        self._prompt_of = prompt_of
        self._answer = answer
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._busy_since = 0.0  # monotonic seconds, of the first of the tasks that there are

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Where the answers run."""
        assert self._loop is not None
        return self._loop

    @property
    def busy_since(self) -> float | None:
        """Since when there has always been an answer under way; None: there is none."""
        return self._busy_since if self._tasks else None

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Once, before the first row."""
        self._loop = loop

    def begin(self, rows: Sequence[Row]) -> None:
        """Send the prompts of ``rows``, from the engine's thread."""
        for answering in dict.fromkeys(row.answering for row in rows):
            with refusals(answering.prompt.job):
                self.loop.call_soon_threadsafe(self._launch, answering, self._prompt_of(answering))

    def _launch(self, answering: Answering, prompt: Sent) -> None:
        if not self._tasks:
            self._busy_since = time.monotonic()
        for row in answering.rows:
            task = self.loop.create_task(self._answer(row, prompt))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            row.prompt.job.on_cancel(partial(self.loop.call_soon_threadsafe, task.cancel))
