"""The HTTP side's calls through Ray Serve: refusals of full queues, and retries where a replica died.

Frames go from a media replica to an engine replica by reference; they never pass through the ingress.
A request whose replica dies is sent again as a whole: answers are greedy or drawn from the request's own
seed, so that the second try says the same. A stream goes on where it stopped, if it does say the same.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any

from prometheus_client import Metric
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse, DeploymentResponseGenerator

from serving.config import ServiceConfig
from serving.engine.records import Delta, EngineRequest, Event, Failed, Finished, ModelCard, Outcome, Started
from serving.errors import ApiError, overloaded
from serving.media.records import VideoInput

logger = logging.getLogger("cacovid.serving.api")

_FIRST_PAUSE_S = 0.2  # before a second try, doubled from try to try: a replacement takes seconds to start


class ServeBackend:
    """Media and engine replicas behind handles; see :class:`serving.backend.Backend`.

    Args:
        config: of the service.
        media: None where engines read videos themselves.
        engine: what answers.
        ingress: the HTTP side itself, for its metrics.
    """

    def __init__(
        self,
        config: ServiceConfig,
        media: DeploymentHandle | None,
        engine: DeploymentHandle,
        ingress: DeploymentHandle,
    ) -> None:
        self._config = config
        self._media = media
        self._engine = engine
        self._streams = engine.options(stream=True)
        self._ingress = ingress
        # Serve counts a request as waiting once its videos are read: of many at once it would refuse none.
        self._room = asyncio.Semaphore(config.engine.max_replicas * config.engine.ongoing + config.engine.waiting)

    async def answer(self, request: EngineRequest, videos: Sequence[VideoInput]) -> Outcome:
        """The outcome as a whole."""
        if self._room.locked():
            return self._full()
        async with self._room:
            outcome: Outcome = await self._tried(lambda: self._engine.answer.remote(request, *self._clips(videos)))
        return outcome

    async def models(self) -> list[ModelCard]:
        """Every model id, from any engine replica."""
        cards: list[ModelCard] | Failed = await self._tried(lambda: self._engine.models.remote())
        if isinstance(cards, Failed):
            raise cards.error
        return cards

    async def metrics(self, own: list[Metric]) -> list[list[Metric]]:
        """From every ingress replica, this one included, and from the engines."""
        asked = [handle.broadcast("families") for handle in (self._ingress, self._engine)]
        found = await asyncio.gather(*(each.results_async(timeout_s=5, return_exceptions=True) for each in asked))
        ingress, engines = ([families for families in part if isinstance(families, list)] for part in found)
        return (ingress or [own]) + engines

    async def stream(self, request: EngineRequest, videos: Sequence[VideoInput]) -> AsyncGenerator[Event, None]:
        """Events up to Finished or Failed."""
        if self._room.locked():
            yield self._full()
            return
        async with self._room, aclosing(self._events(request, videos)) as events:
            async for event in events:
                yield event

    async def _events(self, request: EngineRequest, videos: Sequence[VideoInput]) -> AsyncGenerator[Event, None]:
        sent = _Sent()
        for attempt in range(self._config.engine.retries + 1):
            await self._pause(attempt)
            sent.begin()
            events = self._streams.stream.remote(request, *self._clips(videos))
            try:
                async for event in events:
                    further = sent.beyond(event)
                    if further is not None:
                        yield further
                    if isinstance(further, (Finished, Failed)):
                        return
            except (RayError, RayServeException) as error:
                refusal = self._refusal(error)
                if refusal is not None:
                    yield refusal
                    return
            finally:
                _give_up(events)
        yield Failed(_died())

    async def _tried(self, call: Callable[[], DeploymentResponse]) -> Any:  # noqa: ANN401  what the replica returns
        """The outcome of the first try that reaches a living replica, or Failed."""
        for attempt in range(self._config.engine.retries + 1):
            await self._pause(attempt)
            response = call()
            try:
                return await response
            except asyncio.CancelledError:
                _give_up(response)
                raise
            except (RayError, RayServeException) as error:
                refusal = self._refusal(error)
                if refusal is not None:
                    return refusal
        return Failed(_died())

    def _clips(self, videos: Sequence[VideoInput]) -> Sequence[DeploymentResponse | VideoInput]:
        return videos if self._media is None else [self._media.read.remote(video) for video in videos]

    def _refusal(self, error: RayError | RayServeException) -> Failed | None:
        """What the client is told; None where another try may help, as after the death of a replica.

        Serve tells of a dead engine by a RayError, and of a dead media replica, whose frames the engine
        was to get, by a RayServeException.

        Raises:
            RayError: what another try would not mend: faults of our own code, and a request that was given up.
        """
        if isinstance(error, BackPressureError):
            return self._full()
        if isinstance(error, DeploymentUnavailableError):
            return Failed(ApiError(503, "unavailable", "the service has not started", retry_after_s=10))
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(error, TaskCancelledError) or not isinstance(cause, (RayError, RayServeException)):
            raise error
        logger.warning("a replica was lost (%s); its request is sent again", type(cause).__name__)
        return None

    def _full(self) -> Failed:
        return Failed(overloaded("the queue is full", self._config.api.retry_after_s))

    async def _pause(self, attempt: int) -> None:
        if attempt:
            await asyncio.sleep(_FIRST_PAUSE_S * 2 ** (attempt - 1))


class _Told:
    """Text and number of tokens of each answer of a request."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.tokens: dict[int, int] = {}

    def add(self, delta: Delta) -> None:
        self.texts[delta.index] = self.texts.get(delta.index, "") + delta.text
        self.tokens[delta.index] = self.tokens.get(delta.index, 0) + len(delta.tokens)


class _Sent:
    """What the client has of a stream: a second try adds to it, and repeats and contradicts nothing."""

    def __init__(self) -> None:
        self._started = False
        self._sent = _Told()
        self._again = _Told()  # by the present try

    def begin(self) -> None:
        """A try begins, from the first event on."""
        self._again = _Told()

    def beyond(self, event: Event) -> Event | None:
        """The part of ``event`` that the client does not have; Failed where it says something else."""
        match event:
            case Started():
                known, self._started = self._started, True
                return None if known else event
            case Delta(index=index):
                self._again.add(event)
                return self._further(event, self._sent.texts.get(index, ""), self._sent.tokens.get(index, 0))
            case Finished() if self._again.texts != self._sent.texts:
                return Failed(_died())
        return event

    def _further(self, delta: Delta, sent: str, tokens: int) -> Event | None:
        again = self._again.texts[delta.index]
        if not sent.startswith(again) and not again.startswith(sent):
            return Failed(_died())
        new = self._again.tokens[delta.index] - tokens  # tokens that the client does not have
        further = Delta(again[len(sent) :], delta.index, delta.tokens[-new:] if new > 0 else ())
        if not further.text and not further.tokens:
            return None
        self._sent.add(further)
        return further


def _give_up(call: DeploymentResponse | DeploymentResponseGenerator) -> None:
    """Let the replica know that nobody waits any more.

    Where no replica has taken the call, ``cancel()`` raises once more what its assignment failed with, such as
    the death of the media replica that it waited for: that has been judged already, or comes too late.
    """
    with suppress(RayError, RayServeException):
        call.cancel()


def _died() -> ApiError:
    return ApiError(503, "replica_lost", "the replica that worked on the request was lost; try again", retry_after_s=2)
