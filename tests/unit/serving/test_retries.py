"""What the HTTP side does when replicas are full or die, with handles that do so on purpose."""

import asyncio

import pytest
from ray.exceptions import ActorDiedError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException

from serving.config import ServiceConfig
from serving.engine.records import (
    Answer,
    Decoding,
    Delta,
    EngineRequest,
    Failed,
    Finished,
    Report,
    Started,
    TokenLogprob,
    gathered,
)
from serving.media.records import Sampling, VideoInput
from serving.replicas import backend as serve_backend
from serving.replicas.backend import ServeBackend

REPORT = Report("m", "policy", 0.1, "original", (1, 1, 1), 1, 1, 2, 2)
ANSWER = Answer(("red",), Finished(("stop",), 1, REPORT))
TWO = Finished(("stop", "length"), 4, REPORT)
REQUEST = EngineRequest("m", (), decoding=Decoding(4))


class Handle:
    """A deployment handle; each call takes the next of ``outcomes``."""

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)
        self.calls = 0

    def options(self, stream: bool):
        return self

    def __getattr__(self, name):
        return self

    def remote(self, *args):
        self.calls += 1
        outcome = self.outcomes.pop(0)
        return outcome if isinstance(outcome, Response) else Response(outcome)


class Response:
    def __init__(self, outcome):
        self.outcome = outcome

    def __await__(self):
        async def result():
            if isinstance(self.outcome, Exception):
                raise self.outcome
            return self.outcome

        return result().__await__()

    def __aiter__(self):
        async def events():
            for event in self.outcome:
                if isinstance(event, Exception):
                    raise event
                yield event

        return events()

    def cancel(self):
        self.cancelled = True


def full() -> BackPressureError:
    return BackPressureError(num_queued_requests=5, max_queued_requests=5)


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(serve_backend, "_FIRST_PAUSE_S", 0.0)


def answered(handle: Handle):
    backend = ServeBackend(ServiceConfig(api={"retry_after_s": 4}), Handle(), handle, Handle())
    return asyncio.run(backend.answer(REQUEST, []))


def streamed(handle: Handle) -> list:
    async def collect():
        backend = ServeBackend(ServiceConfig(), Handle(), handle, Handle())
        return [event async for event in backend.stream(REQUEST, [])]

    return asyncio.run(collect())


def test_a_request_of_a_dead_replica_is_sent_again():
    handle = Handle(ActorDiedError(), ANSWER)
    assert answered(handle) == ANSWER
    assert handle.calls == 2


def test_a_request_that_meets_dead_replicas_only_is_answered_with_an_error():
    handle = Handle(*[ActorDiedError()] * 3)
    failed = answered(handle)
    assert (failed.error.status, failed.error.code) == (503, "replica_lost")
    assert handle.calls == 3


def test_a_full_queue_is_told_at_once():
    failed = answered(Handle(full()))
    assert (failed.error.status, failed.error.code, failed.error.retry_after_s) == (503, "overloaded", 4)


def test_a_fault_of_our_code_is_not_tried_again():
    handle = Handle(RayTaskError("answer", "traceback", ValueError("a bug")), ANSWER)
    with pytest.raises(RayTaskError):
        answered(handle)
    assert handle.calls == 1


def test_a_service_that_failed_to_start_does_not_pass_for_a_busy_one():
    failed = answered(Handle(DeploymentUnavailableError(DeploymentID("engine", "cacovid"))))
    assert (failed.error.status, failed.error.code) == (503, "unavailable")


@pytest.mark.parametrize("error", [ActorDiedError(), RayServeException("an upstream actor died")])
def test_frames_that_died_with_their_media_replica_are_read_again(error):
    """Serve tells the death of a replica that another one waited for by an exception of its own."""
    media, engine = Handle("frames", "frames"), Handle(error, ANSWER)
    backend = ServeBackend(ServiceConfig(), media, engine, Handle())
    assert asyncio.run(backend.answer(REQUEST, [VideoInput("data", "", Sampling())])) == ANSWER
    assert (media.calls, engine.calls) == (2, 2)


def test_a_lost_video_behind_a_task_error_is_tried_again():
    handle = Handle(RayTaskError("answer", "traceback", ActorDiedError()), ANSWER)
    assert answered(handle) == ANSWER


def test_a_request_that_is_given_up_is_cancelled_at_its_replica():
    class Endless(Response):
        def __await__(self):
            return asyncio.sleep(60).__await__()

    response = Endless(None)

    class Waiting(Handle):
        def remote(self, *args):
            return response

    async def give_up():
        backend = ServeBackend(ServiceConfig(), Handle(), Waiting(), Handle())
        async with asyncio.timeout(0.05):
            await backend.answer(REQUEST, [])

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())
    assert response.cancelled


def test_a_stream_goes_on_where_it_was_cut():
    first = [Started(), Delta("the "), Delta("ring "), ActorDiedError()]
    second = [Started(), Delta("the ri"), Delta("ng is"), Delta(" red"), ANSWER.finished]
    events = streamed(Handle(first, second))
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "the ring is red"
    assert sum(isinstance(event, Started) for event in events) == 1
    assert events[-1] == ANSWER.finished


def test_every_answer_of_a_stream_goes_on_where_it_was_cut_with_its_log_probabilities():
    red, ring, is_ = (TokenLogprob(word, -1.0) for word in ("red ", "ring ", "is "))
    blue = Delta("blue", 1, (TokenLogprob("blue", -2.0),))
    first = [Started(), Delta("red ", 0, (red,)), blue, Delta("", 0, (ring,)), ActorDiedError()]
    second = [Started(), blue, Delta("red ring ", 0, (red, ring)), Delta("is ", 0, (is_,)), TWO]
    events = streamed(Handle(first, second))
    answer = gathered([event for event in events if isinstance(event, Delta)], events[-1])
    assert answer == Answer(("red ring is ", "blue"), TWO, ((red, ring, is_), blue.tokens))


def test_a_stream_that_was_cut_before_it_began_has_all_of_its_events():
    whole = [Started(), Delta("red"), ANSWER.finished]
    assert streamed(Handle([RayServeException("an upstream actor died")], whole)) == whole


class Unassigned(Response):
    """A call that fails before any replica has taken it: Serve's ``cancel()`` raises the error once more."""

    def cancel(self):
        raise self.outcome[-1]


def test_a_stream_whose_frames_died_before_an_engine_took_it_is_sent_again():
    whole = [Started(), Delta("red"), ANSWER.finished]
    handle = Handle(Unassigned([RayServeException("an upstream actor died")]), whole)
    assert streamed(handle) == whole


def test_a_stream_of_a_full_queue_is_refused_although_no_replica_took_it():
    (failed,) = streamed(Handle(Unassigned([full()])))
    assert failed.error.code == "overloaded"


def test_a_request_that_is_given_up_when_its_assignment_has_failed_is_given_up_all_the_same():
    class GivenUp(Response):
        def __await__(self):
            return asyncio.sleep(60).__await__()

        def cancel(self):
            raise RayServeException("an upstream actor died")

    async def give_up():
        backend = ServeBackend(ServiceConfig(), Handle(), Handle(GivenUp(None)), Handle())
        async with asyncio.timeout(0.05):
            await backend.answer(REQUEST, [])

    with pytest.raises(TimeoutError):
        asyncio.run(give_up())


def test_a_stream_whose_second_try_says_less_ends_with_an_error():
    first = [Started(), Delta("red ring"), ActorDiedError()]
    events = streamed(Handle(first, [Started(), Delta("red"), ANSWER.finished]))
    assert isinstance(events[-1], Failed)


def test_a_stream_that_would_contradict_itself_ends_with_an_error():
    events = streamed(Handle([Started(), Delta("red"), ActorDiedError()], [Started(), Delta("blue")]))
    assert isinstance(events[-1], Failed)
    assert [event.text for event in events if isinstance(event, Delta)] == ["red"]


def test_a_stream_of_a_full_queue_is_refused():
    (failed,) = streamed(Handle([full()]))
    assert failed.error.code == "overloaded"


def test_of_many_requests_at_once_no_more_wait_than_may():
    """Serve would count them once their videos are read, when all have come in."""
    config = ServiceConfig(engine={"max_replicas": 1, "ongoing": 2, "waiting": 1})

    class Slow(Response):
        def __await__(self):
            async def result():
                await asyncio.sleep(0.2)
                return ANSWER

            return result().__await__()

    async def ask():
        handle = Handle(*[Slow(ANSWER) for _ in range(3)], ANSWER)
        backend = ServeBackend(config, Handle(), handle, Handle())
        first = await asyncio.gather(*(backend.answer(REQUEST, []) for _ in range(5)))
        return first, await backend.answer(REQUEST, [])

    first, later = asyncio.run(ask())
    assert first[:3] == [ANSWER] * 3
    assert [failed.error.code for failed in first[3:]] == ["overloaded"] * 2
    assert later == ANSWER, "there is room again"
