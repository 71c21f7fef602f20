"""Evaluation by Ray actors: each holds a frozen Video-LLM with all methods and measures a few questions at a time."""

import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch

from actors.host import RayHost
from actors.pool import RolloutPool
from actors.replica import ReplicaActor
from actors.task import MeasureTask, Task, TaskResult, parts
from cacovid.config import ActorsConfig
from cacovid.evaluation.measurer import Measurer, Setup
from cacovid.evaluation.measuring import Asked, Outcome
from cacovid.gpu_memory import held_bytes
from cacovid.methods.protocol import Method

QUESTIONS = 8  # about one clip, given to an actor at once


@dataclass(frozen=True, eq=False)
class MeasuringConfig:
    """What each actor gets."""

    setup: Setup
    threads: int
    first_video: str | None  # that the driver sees, and every actor must see


class MeasuringActor(ReplicaActor):
    """Holds one replica with all methods."""

    def __init__(self, config: MeasuringConfig, worker_index: int) -> None:
        self.first_video = config.first_video
        self._measurer = Measurer(config.setup)
        if worker_index:
            torch.set_num_threads(config.threads)

    def _load(self) -> list[Method]:
        return self._measurer.methods

    def sample_apart(self, task: MeasureTask) -> tuple[TaskResult | None, ...]:
        """The result, and a None for each item: nothing of an evaluation travels apart."""
        started = time.perf_counter()
        try:
            measured = tuple(self._measurer.measure(task.asked[item.id]) for item in task.items)
            result = TaskResult(measured=measured, seconds=time.perf_counter() - started, gpu_bytes=held_bytes())
        except Exception:  # noqa: BLE001 - an exception would end the actor and lose its cause; the driver decides
            result = TaskResult(error=traceback.format_exc())
        return (result, *[None] * len(task.items))


def measure_everywhere(
    setup: Setup, asked: Sequence[Asked], config: ActorsConfig, start_timeout_s: float
) -> Iterator[Outcome]:
    """What becomes of the questions, in their order, by the actors of ``config``, at least one.

    A dead actor's place gets a new one, and its questions are measured again.

    Raises:
        UserError: No actor can load its replica, or none was ready for ``start_timeout_s`` seconds.
    """
    if not asked:
        return
    first = next((each.item.video for each in asked if Path(each.item.video).exists()), None)
    actor_config = MeasuringConfig(setup, config.threads, first)
    host = RayHost(MeasuringActor, actor_config, {"CPU": config.cpus, "GPU": config.gpus}, config.label_selector)
    pool = RolloutPool(host, config, _nobody, start_timeout_s)
    pool.start()
    try:
        for ticket in pool.submit(_tasks(asked)):
            (result,) = pool.collect([ticket])
            yield from result.measured
            yield from (Outcome(aside.item, reason=aside.reason) for aside in result.set_aside)
    finally:
        pool.close()


def _tasks(asked: Sequence[Asked]) -> list[MeasureTask]:
    """Questions about one clip together, so that it is watched once."""
    by_clip = [list(group) for _, group in groupby(asked, key=lambda each: each.item.clip)]
    return [
        MeasureTask(tuple(each.item for each in part), {each.item.id: each for each in part})
        for group in by_clip
        for part in parts(group, QUESTIONS)
    ]


def _nobody(task: Task) -> TaskResult:
    raise AssertionError("a pool without actors measures nothing")
