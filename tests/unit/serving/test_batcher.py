"""Requests into batches; leaving, faults and stalls."""

import asyncio
import gc
import threading
from dataclasses import replace
from weakref import ref

import pytest
import torch

from serving.config import EngineConfig
from serving.engine.batcher import Batcher
from serving.engine.engine import Engine
from serving.engine.records import (
    Answer,
    CompressionWish,
    Decoding,
    Delta,
    Failed,
)
from serving.media.records import Clip
from tests.support.serving_engine import (
    asks,
    clip_of,
    engine_of,
    one,
    text_of,
)
from tests.support.waiting import PATIENCE_S, until

FEW = CompressionWish(retention=0.03)


def long_clip(seed: int) -> Clip:
    """40 frames, read one by one."""
    return replace(clip_of(seed, 40), chunk=1)


def with_batcher(engine: Engine, work, **config):
    async def through():
        batcher = Batcher(engine, EngineConfig(**config))
        batcher.start()
        try:
            return await work(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(through())


def test_requests_that_wait_together_are_answered_together(llm, engine, monkeypatch):
    begun = []
    begin = engine._begin
    monkeypatch.setattr(engine, "_begin", lambda jobs, more: begun.append(len(jobs)) or begin(jobs, more))

    async def work(batcher: Batcher) -> list[Answer]:
        return await asyncio.gather(*(batcher.answer(asks(), [clip_of(0)]) for _ in range(7)))

    answers = with_batcher(engine, work, max_batch=4)
    assert [size for size in begun if size] == [4, 3]
    assert {answer.text for answer in answers} == {text_of(one(engine, asks()))}


def test_a_request_that_comes_later_does_not_wait_for_a_long_answer(engine):
    """It joins between two tokens: its answer is whole while the other is still being written."""

    async def work(batcher: Batcher) -> tuple[Answer, bool]:
        events = batcher.events(asks(decoding=Decoding(max_tokens=1000)), [clip_of(0)])
        async for event in events:
            if isinstance(event, Delta):
                break
        long = asyncio.create_task(_rest(events))
        answer = await batcher.answer(asks(), [clip_of(1)])
        waited = long.done()
        long.cancel()
        await asyncio.gather(long, return_exceptions=True)
        return answer, waited

    answer, waited = with_batcher(engine, work)
    assert (answer.text, waited) == (text_of(one(engine, asks(), clip_of(1))), False)


async def _rest(events) -> None:
    async for _ in events:
        pass


def test_a_failing_batch_is_answered_with_an_error_and_the_next_one_runs(engine, monkeypatch, caplog):
    run_batch = engine.run

    def broken(jobs, more):
        monkeypatch.setattr(engine, "run", run_batch)
        raise RuntimeError("secret detail")

    monkeypatch.setattr(engine, "run", broken)

    async def work(batcher: Batcher):
        return await batcher.answer(asks(), [clip_of(0)]), await batcher.answer(asks(), [clip_of(0)])

    first, second = with_batcher(engine, work)
    assert (first.error.status, "secret" in first.error.message) == (500, False)
    assert isinstance(second, Answer)


def test_a_device_that_has_failed_makes_its_engine_unhealthy(engine, monkeypatch):
    """After an illegal access CUDA answers nothing more in that process; another error is one batch's."""

    def failing_with(error: Exception) -> str | None:
        def broken(jobs, more):
            raise error

        async def work(batcher: Batcher) -> str | None:
            assert isinstance(await batcher.answer(asks(), [clip_of(0)]), Failed)
            return batcher.fault()

        monkeypatch.setattr(engine, "run", broken)
        return with_batcher(engine, work)

    assert failing_with(RuntimeError("a bug")) is None
    assert "device" in failing_with(torch.AcceleratorError("CUDA error: an illegal memory access", 700))


def test_leaving_early_ends_the_generation(llm, engine, monkeypatch):
    steps = []
    forward = llm.model.forward
    monkeypatch.setattr(llm.model, "forward", lambda *args, **kwargs: steps.append(1) or forward(*args, **kwargs))

    async def work(batcher: Batcher) -> Answer:
        events = batcher.events(asks(decoding=Decoding(max_tokens=1000)), [clip_of(0)])
        async for event in events:
            if isinstance(event, Delta):
                break
        await events.aclose()
        return await batcher.answer(asks(), [clip_of(0)])

    assert isinstance(with_batcher(engine, work), Answer)
    assert len(steps) < 500


def test_a_stalled_batch_is_a_fault(engine, monkeypatch):
    release = threading.Event()
    run_batch = engine.run
    monkeypatch.setattr(engine, "run", lambda jobs, more: release.wait(PATIENCE_S) and run_batch(jobs, more))

    async def work(batcher: Batcher):
        assert batcher.fault() is None
        task = asyncio.create_task(batcher.answer(asks(), [clip_of(0)]))
        await until(batcher.fault)
        fault = batcher.fault()
        release.set()
        await task
        await until(lambda: batcher.fault() is None)  # the batch ends just after its last event
        return fault

    assert with_batcher(engine, work, stall_s=0.1) == "no token has come for longer than engine.stall_s=0.1"


@pytest.mark.parametrize("max_batch", [1, 2])
def test_long_videos_that_wait_keep_no_short_one_waiting(max_batch):
    """As many as are answered together come first: the short one is answered between the chunks of the first."""
    ends = []

    async def work(batcher: Batcher) -> list[Answer]:
        async def answer(name: str, clip: Clip) -> Answer:
            outcome = await batcher.answer(asks(compression=FEW), [clip])
            ends.append(name)
            return outcome

        clips = {"long": long_clip(0), "other long": long_clip(1), "short": clip_of(2)}
        return await asyncio.gather(*(answer(*each) for each in clips.items()))

    answers = with_batcher(engine_of(feature_cache_bytes=0), work, max_batch=max_batch)
    assert all(isinstance(each, Answer) for each in answers)
    assert ends == ["short", "long", "other long"]


def test_long_videos_take_half_of_a_replicas_places_at_most(engine):
    async def work(batcher: Batcher):
        both = await asyncio.gather(*(batcher.answer(asks(compression=FEW), [long_clip(seed)]) for seed in range(2)))
        return [*both, await batcher.answer(asks(compression=FEW), [long_clip(0)])]

    first, refused, later = with_batcher(engine, work, ongoing=2)
    assert isinstance(first, Answer)
    assert (refused.error.status, refused.error.code, refused.error.retry_after_s) == (503, "overloaded", 10)
    assert isinstance(later, Answer), "its place is free again"


@pytest.mark.parametrize("wish", [FEW, CompressionWish(method="text-cosine")], ids=["answered", "refused"])
def test_an_idle_engine_holds_no_video(wish):
    async def work(batcher: Batcher) -> None:
        clip = long_clip(0)
        frames = ref(clip.frames)
        await batcher.answer(asks(compression=wish), [clip])
        del clip
        await until(lambda: frames() is None, 5)

    gc.collect()
    gc.disable()  # an idle process collects no garbage
    try:
        with_batcher(engine_of(feature_cache_bytes=0), work)
    finally:
        gc.enable()
