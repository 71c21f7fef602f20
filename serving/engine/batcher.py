"""Requests into one engine: whatever waits begins together, and what comes later joins between two tokens.

    submit -> queue -> [collect up to max_batch, at most batch_wait_ms] -> engine thread -> events
                  +--- [whenever fewer than max_batch are being answered] --^

Those with a long video wait for each other and are answered beside the max_batch others.
The engine's thread runs until nobody is left; the queue's bound is kept by those who submit.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from weakref import ref

import torch

from serving.config import EngineConfig
from serving.engine.engine import Engine
from serving.engine.prompts import Job
from serving.engine.records import LAST, Compressed, Delta, EngineRequest, Event, Failed, Finished, Outcome, gathered
from serving.errors import internal_error, overloaded
from serving.media.records import Clip

logger = logging.getLogger("cacovid.serving.engine")


class Batcher:
    """Feeds one engine from one event loop. ``start()`` and ``stop()`` belong to that loop."""

    def __init__(self, engine: Engine, config: EngineConfig) -> None:
        self.engine = engine
        self._config = config
        self._queue: deque[Job] = deque()  # taken from by the engine's thread too
        self._arrived = asyncio.Event()
        self._taken: list[ref[Job]] = []  # by the engine; whoever works on one or waits for it keeps its files
        self._long = 0  # requests with a long video, of all that somebody waits for
        self._leaving = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._task: asyncio.Task[None] | None = None
        self._busy_since: float | None = None
        self._device_lost = False

    @property
    def waiting(self) -> int:
        """Requests that no batch has taken yet."""
        return len(self._queue)

    def start(self) -> None:
        """Begin to take requests, the first time; a loop that has ended stays a fault."""
        if self._task is None:
            loop = asyncio.get_running_loop()
            self.engine.answerer.start(loop)
            self._task = loop.create_task(self._work())

    async def stop(self) -> None:
        """Let the answers that are being written finish, then end the thread."""
        self._leaving = True
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
            return f"no token has come for longer than engine.stall_s={self._config.stall_s}"
        if self._device_lost:
            return "the device has failed: CUDA answers nothing more in this process"
        return self.engine.answerer.fault()

    async def events(self, request: EngineRequest, clips: Sequence[Clip]) -> AsyncGenerator[Event, None]:
        """All events of one request; leaving early takes it out of its batch at the next token."""
        loop = asyncio.get_running_loop()
        inbox: asyncio.Queue[Event] = asyncio.Queue()
        job = Job(request, clips, lambda event: _post(loop, inbox, event))
        long = job.long is not None
        if long and self._long >= max(1, self._config.ongoing // 2):  # the other places are for those that take moments
            yield Failed(overloaded("too many long videos wait for their turn", 10))
            return
        self._long += long
        self._queue.append(job)
        self._arrived.set()
        try:
            while True:
                event = await inbox.get()
                yield event
                if isinstance(event, LAST):
                    return
        finally:
            self._long -= long
            job.cancel()

    async def answer(self, request: EngineRequest, clips: Sequence[Clip]) -> Outcome:
        """The outcome of one request as a whole."""
        deltas: list[Delta] = []
        async with aclosing(self.events(request, clips)) as events:
            async for event in events:
                match event:
                    case Delta():
                        deltas.append(event)
                    case Finished():
                        return gathered(deltas, event)
                    case Compressed() | Failed():
                        return event
        raise AssertionError("events end with Finished, Compressed or Failed")

    async def _work(self) -> None:
        while True:
            await self._run(await self._collect())

    async def _run(self, jobs: list[Job]) -> None:
        """Run the engine until nobody is left; no job is held behind it."""
        self._busy_since = time.monotonic()
        running = asyncio.get_running_loop().run_in_executor(self._thread, self.engine.run, jobs, self._more)
        await asyncio.wait([running])
        self._busy_since = None
        error = running.exception()
        if error is not None:
            lost = self._unfinished()
            logger.error("a batch of %d requests failed", len(lost), exc_info=error)
            self._device_lost = self._device_lost or isinstance(error, torch.AcceleratorError)
            for job in lost:
                job.emit(Failed(internal_error()))

    async def _collect(self) -> list[Job]:
        while not self._queue:
            self._arrived.clear()
            await self._arrived.wait()
        deadline = time.monotonic() + self._config.batch_wait_ms / 1000
        while len(self._queue) < self._config.max_batch and (left := deadline - time.monotonic()) > 0:
            self._arrived.clear()
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except TimeoutError:
                break  # nobody else came
        return self._take(self._config.max_batch)

    def _more(self) -> list[Job]:
        """Between two tokens, in the engine's thread: it lives, and there may be room for others."""
        self._busy_since = time.monotonic()
        writing = sum(job.long is None for job in self._unfinished())
        return [] if self._leaving else self._take(self._config.max_batch - writing)

    def _unfinished(self) -> list[Job]:
        return [job for each in self._taken if (job := each()) is not None and not job.ended]

    def _take(self, room: int) -> list[Job]:
        """The first ``room`` of those that wait."""
        jobs = [self._queue.popleft() for _ in range(min(len(self._queue), room))]
        self._taken = [ref(job) for job in (*self._unfinished(), *jobs)]
        return jobs


def _post(loop: asyncio.AbstractEventLoop, inbox: "asyncio.Queue[Event]", event: Event) -> None:
    """From the engine's thread into the loop; a loop that has gone needs no events."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(inbox.put_nowait, event)
