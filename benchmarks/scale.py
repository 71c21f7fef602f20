"""``make bench-scale``: whether one controller keeps a thousand rollout actors busy, before there are machines.

The pool, the schedule and the replay buffer are the real ones; the actors are stand-ins in this process behind the
pool's own interface, each of which answers its tasks in order after heavy-tailed times, and the learner is a pause.

    RolloutSchedule -> RolloutPool -> [stand-in 1] ... [stand-in 1000]     one thread and a heap of answers due
           ^               |
           '--- Updates <--'  real replay, a learner that sleeps
"""

import heapq
import itertools
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, cast

import psutil
import torch
import typer

from actors.host import Done
from actors.pool import RolloutPool
from actors.task import RolloutTask, TaskResult
from benchmarks.table import show
from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cacovid.data.order import ItemOrder
from cacovid.records import Combinations, Rollout, ScoredCombinations, VideoQuestion
from cluster.training.rollout_schedule import RolloutSchedule
from cluster.training.updates import Updates
from learner.group import DeepSpeedLearnerGroup
from learner.training_data import RecordData

GROUP, KEPT, FRAMES = 32, 96, 32  # of a rollout at 7B shape: combinations, retained tokens of each, frames
INPUT_BYTES = 45_000_000  # of an item's input at that shape, which the driver never sees
SPREAD = 0.8  # sigma of the lognormal task times: one in a hundred takes six times the median
ITEMS = 20_000


@dataclass
class _Stand:
    """One stand-in: when it is free again, and how long it has worked."""

    free_at: float = 0.0
    worked: float = 0.0


@dataclass
class StandIns:
    """An :class:`actors.host.ActorHost` whose actors answer by the clock."""

    task_s: float
    due: list[tuple[float, int, Done, Any]] = field(default_factory=list)
    stands: list[_Stand] = field(default_factory=list)
    cpu_s: float = 0.0  # of the thread that answers, which real actors would not cost the controller

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._times = random.Random(0)
        self._changed = threading.Condition()
        threading.Thread(target=self._answer, daemon=True).start()

    def start(self, number: int) -> _Stand:
        """A stand-in, at once."""
        self.stands.append(_Stand())
        return self.stands[-1]

    def call(self, handle: _Stand, method: str, done: Done, *arguments: Any, apart: int = 0) -> None:  # noqa: ANN401
        """The answer comes when the stand-in is through with all that it was asked before."""
        now = time.monotonic()
        if method != "sample_apart":
            self._put(now, done, "node" if method == "node_id" else None)
            return
        taken = self._times.lognormvariate(0.0, SPREAD) * self.task_s
        handle.free_at = max(now, handle.free_at) + taken
        handle.worked += taken
        task: RolloutTask = arguments[0]
        rollouts = tuple(made_rollout(item, task) for item in task.items)
        result = TaskResult(rollouts=rollouts, input_bytes=(INPUT_BYTES,) * len(rollouts), seconds=taken)
        self._put(handle.free_at, done, (result, tuple(object() for _ in rollouts)))

    def worked_s(self) -> float:
        """Seconds that all stand-ins have worked so far; what they have been given ahead is not done yet."""
        now = time.monotonic()
        return sum(stand.worked - max(0.0, stand.free_at - now) for stand in self.stands)

    def end(self, handle: _Stand) -> None:
        """Nothing: a stand-in has no process."""

    def node_lives(self, node: str) -> bool:
        """Always."""
        return True

    def draining(self) -> Mapping[str, float]:
        """Never."""
        return {}

    def _put(self, at: float, done: Done, value: object) -> None:
        with self._changed:
            heapq.heappush(self.due, (at, next(self._numbers), done, value))
            self._changed.notify()

    def _answer(self) -> None:
        while True:
            with self._changed:
                while not self.due or self.due[0][0] > time.monotonic():
                    self._changed.wait(self.due[0][0] - time.monotonic() if self.due else None)
                _, _, done, value = heapq.heappop(self.due)
            done(value, None)
            self.cpu_s = time.thread_time()


_KEPT = torch.zeros(GROUP, KEPT, dtype=torch.int32)
_SCORED = ScoredCombinations(
    Combinations(_KEPT, torch.zeros(GROUP, dtype=torch.uint8), torch.zeros(GROUP, FRAMES, dtype=torch.bool), 0.02),
    torch.zeros(GROUP),
    torch.zeros(GROUP),
)


def made_rollout(item: VideoQuestion, task: RolloutTask) -> Rollout:
    """A rollout of real size that says nothing."""
    return Rollout(item.id, task.step, task.weights.version, (_SCORED,))


class _Pause:
    """A learner group that takes its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def update(self, *, training_data: RecordData) -> list[dict[str, float]]:
        """One update's pause."""
        time.sleep(self.seconds)
        return [{"loss": 0.0, "grad_norm": 0.0}]


def main(
    actors: Annotated[int, typer.Option(min=1, help="stand-ins")] = 1000,
    task_s: Annotated[float, typer.Option(min=0.01, help="median seconds of a task")] = 2.0,
    pause: Annotated[float, typer.Option(min=0, help="the learner's time a step, in task times")] = 5.0,
    items_per_actor: Annotated[int, typer.Option(min=1, help="questions of a training step, times the actors")] = 8,
    staleness: Annotated[int, typer.Option(min=0, help="steps that rollouts run ahead")] = 3,
    steps: Annotated[int, typer.Option(min=2, help="training steps measured")] = 4,
) -> None:
    """Share of time that the actors work, and what the controller costs, printed as a table."""
    overrides = {
        "actors.count": actors,
        "actors.items_per_task": 1,
        "actors.staleness": staleness,
        "run.items_per_step": items_per_actor * actors,
        "run.steps": 10**6,
        "learners.count": 0,
        "objective.replay_bytes": 10**13,
    }
    config = with_overrides(TrainConfig(), overrides)
    items = [VideoQuestion(str(n), "v.mp4", "?", ("a", "b"), "A", "multiple choice", "made") for n in range(ITEMS)]
    host = StandIns(task_s)
    pool = RolloutPool(host, config.actors, lambda task: TaskResult(), config.run.start_timeout_s)
    pool.start()
    schedule = RolloutSchedule(pool, ItemOrder(items, config.run.items_per_step, 0), config)
    updates = Updates(config, lambda ids, version: {})
    group = cast(DeepSpeedLearnerGroup, _Pause(pause * task_s / config.updates_per_step()))
    schedule._remote = False  # weights by value: there is no object store here
    schedule.publish(0, {})
    process = psutil.Process()
    for step in range(steps + 1):
        if step == 1:  # the first one fills the queues
            started, cpu = time.monotonic(), sum(process.cpu_times()[:2]) - host.cpu_s
            memory, worked = process.memory_info().rss, host.worked_s()
        results = schedule.collect(step)
        updates.learn(group, step, results)
        schedule.publish(step + 1, {})
    elapsed = time.monotonic() - started
    busy = (host.worked_s() - worked) / (elapsed * actors)
    cost = (sum(process.cpu_times()[:2]) - host.cpu_s - cpu) / elapsed
    tasks = steps * config.run.items_per_step
    rows = [
        ("actors at work", f"{100 * busy:.1f} % of the time"),
        ("controller", f"{100 * cost:.1f} % of one core, {1e6 * cost * elapsed / tasks:.0f} us a task"),
        ("its memory", f"{(process.memory_info().rss - memory) / 2**20:+.0f} MiB over {tasks} tasks"),
        ("tasks", f"{tasks / elapsed:.0f} a second"),
    ]
    show(f"{actors} stand-ins, tasks of {task_s:g} s, {steps} steps in {elapsed:.0f} s", ("", "measured"), rows)
    pool.close()


if __name__ == "__main__":
    typer.run(main)
