"""Requests into batches: whatever waits when the engine is free goes together.

    submit -> queue -> [collect up to max_batch, at most batch_wait_ms] -> engine thread -> events

One batch runs at a time; further requests wait in the queue, whose bound is kept by those who submit.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing

import torch

from serving.config import EngineConfig
from serving.engine.engine import Engine
from serving.engine.prompts import Job
from serving.engine.records import Answer, Compressed, Delta, EngineRequest, Event, Failed, Finished, Outcome
from serving.errors import internal_error
from serving.media.records import Clip

logger = logging.getLogger("cacovid.serving.engine")


class Batcher:
    """Feeds one engine from one event loop. ``start()`` and ``stop()`` belong to that loop."""

    def __init__(self, engine: Engine, config: EngineConfig) -> None:
        self.engine = engine
        self._config = config
        self._queue: asyncio.Queue[Job] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._task: asyncio.Task[None] | None = None
        self._busy_since: float | None = None
        self._device_lost = False

    @property
    def waiting(self) -> int:
        """Requests that no batch has taken yet."""
        return self._queue.qsize()

    def start(self) -> None:
        """Begin to take requests, the first time; a loop that has ended stays a fault."""
        if self._task is None:
            loop = asyncio.get_running_loop()
            self.engine.answerer.start(loop)
            self._task = loop.create_task(self._work())

    async def stop(self) -> None:
        """Let the running batch finish, then end the thread."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.to_thread(self._thread.shutdown)
        self.engine.answerer.stop()

    def fault(self) -> str | None:
        """Why this engine is not healthy; None if it is."""
        if self._task is None or self._task.done():
            return "the batching loop has ended"
        if self._busy_since is not None and time.monotonic() - self._busy_since > self._config.stall_s:
            return f"a batch has lasted longer than engine.stall_s={self._config.stall_s}"
        if self._device_lost:
            return "the device has failed: CUDA answers nothing more in this process"
        return self.engine.answerer.fault()

    async def events(self, request: EngineRequest, clips: Sequence[Clip]) -> AsyncGenerator[Event, None]:
        """All events of one request; leaving early takes it out of its batch at the next token."""
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Event] = asyncio.Queue()
        job = Job(request, clips, lambda event: _post(loop, inbox, event))
        self._queue.put_nowait(job)
        try:
            while True:
                event = await inbox.get()
                yield event
                if isinstance(event, (Finished, Failed, Compressed)):
                    return
        finally:
            job.cancel()

    async def answer(self, request: EngineRequest, clips: Sequence[Clip]) -> Outcome:
        """The outcome of one request as a whole."""
        texts: list[str] = []
        async with aclosing(self.events(request, clips)) as events:
            async for event in events:
                match event:
                    case Delta(text):
                        texts.append(text)
                    case Finished():
                        return Answer("".join(texts), event)
                    case Compressed() | Failed():
                        return event
        raise AssertionError("events end with Finished, Compressed or Failed")

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            jobs = await self._collect()
            self._busy_since = time.monotonic()
            running = loop.run_in_executor(self._thread, self.engine.run, jobs)
            await asyncio.wait([running])
            self._busy_since = None
            error = running.exception()
            if error is not None:
                logger.error("a batch of %d requests failed", len(jobs), exc_info=error)
                self._device_lost = self._device_lost or isinstance(error, torch.AcceleratorError)
                for job in jobs:
                    job.emit(Failed(internal_error()))

    async def _collect(self) -> list[Job]:
        jobs = [await self._queue.get()]
        try:
            async with asyncio.timeout(self._config.batch_wait_ms / 1000):
                while len(jobs) < self._config.max_batch:
                    jobs.append(await self._queue.get())
        except TimeoutError:
            pass  # nobody else came
        while len(jobs) < self._config.max_batch and not self._queue.empty():
            jobs.append(self._queue.get_nowait())
        return jobs


def _post(loop: asyncio.AbstractEventLoop, inbox: "asyncio.Queue[Event]", event: Event) -> None:
    """From the engine's thread into the loop; a loop that has gone needs no events."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(inbox.put_nowait, event)
