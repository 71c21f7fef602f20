"""What the HTTP side asks of whatever reads videos and answers.

``serving.replicas.backend`` goes through Ray Serve, ``tests.support.local_backend`` stays in one process; the HTTP
side does not know which it has.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from prometheus_client import Metric

from serving.engine.records import EngineRequest, Event, ModelCard, Outcome
from serving.media.records import VideoInput


class Backend(Protocol):
    """Reads videos and answers questions about them."""

    async def answer(self, request: EngineRequest, videos: Sequence[VideoInput]) -> Outcome:
        """The outcome as a whole."""
        ...

    def stream(self, request: EngineRequest, videos: Sequence[VideoInput]) -> AsyncGenerator[Event, None]:
        """Events up to Finished or Failed; closing it gives the request up."""
        ...

    async def models(self) -> list[ModelCard]:
        """Every model id; raises ApiError where nobody can say."""
        ...

    async def metrics(self, own: list[Metric]) -> list[list[Metric]]:
        """Metric families of every replica of the HTTP side; ``own`` are those of the asking one."""
        ...
