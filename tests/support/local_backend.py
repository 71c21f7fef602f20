"""Media and engine in this process: for tests, and to measure what Ray Serve costs."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from prometheus_client import Metric

from serving.config import ServiceConfig
from serving.engine.batcher import Batcher
from serving.engine.engine import Engine
from serving.engine.records import EngineRequest, Event, Failed, ModelCard, Outcome
from serving.errors import ApiError, overloaded
from serving.media.records import Clip, VideoInput
from serving.media.sandbox import Sandbox


class LocalBackend:
    """One engine and one sandbox; see :class:`serving.backend.Backend`."""

    def __init__(self, engine: Engine, config: ServiceConfig) -> None:
        self._config = config
        self._sandbox = Sandbox(config.media, config.model.num_frames, config.api.retry_after_s)
        self._batcher = Batcher(engine, config.engine)

    def start(self) -> None:
        """Begin to take requests, in the running event loop."""
        self._batcher.start()

    async def stop(self) -> None:
        """Finish the running batch and end all processes."""
        await self._batcher.stop()
        self._sandbox.close()

    async def answer(self, request: EngineRequest, videos: Sequence[VideoInput]) -> Outcome:
        """See :class:`Backend`."""
        try:
            return await self._batcher.answer(request, await self._clips(videos))
        except ApiError as error:
            return Failed(error)

    async def stream(self, request: EngineRequest, videos: Sequence[VideoInput]) -> AsyncGenerator[Event, None]:
        """See :class:`Backend`."""
        try:
            clips = await self._clips(videos)
        except ApiError as error:
            yield Failed(error)
            return
        async with aclosing(self._batcher.events(request, clips)) as events:
            async for event in events:
                yield event

    async def models(self) -> list[ModelCard]:
        """See :class:`Backend`."""
        return self._batcher.engine.models()

    async def metrics(self, own: list[Metric]) -> list[list[Metric]]:
        """See :class:`Backend`."""
        return [own, self._batcher.engine.answerer.metrics()]

    async def _clips(self, videos: Sequence[VideoInput]) -> list[Clip]:
        if self._batcher.waiting >= self._config.engine.waiting:
            raise overloaded("the queue is full", self._config.api.retry_after_s)
        return list(await asyncio.gather(*(self._sandbox.read(video) for video in videos)))
