"""What draws the answers: the one part of an engine replica that ``engine.kind`` chooses.

    encode, policy, selection (serving.engine.engine) -> rows -> Answerer.begin -> Row.take, a token at a time

``serving.engine.generation`` answers with transformers, ``serving.vllm.answerer`` with vLLM.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from prometheus_client import Metric

from serving.engine.decoding import Row
from serving.engine.records import Decoding


class Answerer(Protocol):
    """Draws the tokens of answers whose prompts are ready: one row is one answer."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Once, before the first row: requests run in ``loop``."""
        ...

    def check(self, decoding: Decoding) -> None:
        """Raises ApiError (400) for what it cannot do, and names what can."""
        ...

    def begin(self, rows: Sequence[Row]) -> None:
        """Begin to answer ``rows``, from the engine's thread; it may return before they are done.

        Each row gets ``take`` for every token until it is ``done``, or ``fail``. A row whose job is cancelled
        is given up.
        """
        ...

    def advance(self) -> bool:
        """Draw one token of every answer, where the engine's thread is to do that; whether any is being written there.

        An answerer that draws elsewhere returns False at once.
        """
        ...

    def fault(self) -> str | None:
        """Why it answers nobody any more; None if it does."""
        ...

    def metrics(self) -> list[Metric]:
        """Metric families of its own."""
        ...

    def stop(self) -> None:
        """Give up what it holds: memory, processes."""
        ...
