"""``make bench-scale``: whether one controller keeps many rollout actors busy, before there are machines.

The pool, the schedule and the replay buffer are the real ones. The actors take their time and do nothing
(:mod:`benchmarks.crews`): a thousand in this process, which tell what the controller's own work costs, or some tens of
real ones, which tell what Ray's calls cost besides. The learner is a pause.

    RolloutSchedule -> RolloutPool -> [actor 1] ... [actor 1000]
           ^               |
           '--- Updates <--'  real replay, a learner that sleeps

Inputs go by reference, as they do in a run, and are stand-ins of a few bytes: 64 of 45 MB would not fit this machine.
Work that is done twice, since an actor is late with it, counts as work.
"""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, cast

import numpy as np
import psutil
import typer

from actors.pool import RolloutPool
from actors.task import TaskResult, Weights
from benchmarks.crews import Crew, LightActors, StandIns
from benchmarks.made import made_answers, questions
from benchmarks.memory import held_bytes
from benchmarks.table import show
from benchmarks.timing import seconds
from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cacovid.data.order import ItemOrder
from cluster.ray_cluster import connected
from cluster.training.rollout_schedule import RolloutSchedule
from cluster.training.updates import Updates
from learner.group import DeepSpeedLearnerGroup
from learner.training_data import RecordData

ITEMS = 20_000


class _Pause:
    """A learner group that takes its time."""

    def __init__(self, pause_s: float) -> None:
        self.pause_s = pause_s

    def update(self, *, training_data: RecordData) -> list[dict[str, float]]:
        """One update's pause."""
        time.sleep(self.pause_s)
        return [{"loss": 0.0, "grad_norm": 0.0}]


class _Controller:
    """What the driver of a run does between its actors and its learner."""

    def __init__(self, crew: Crew, config: TrainConfig, pause_s: float, weights: Weights, *, real: bool) -> None:
        self.pool = RolloutPool(crew, config.actors, lambda task: TaskResult(), config.run.start_timeout_s)
        self.schedule = RolloutSchedule(self.pool, ItemOrder(questions(ITEMS), config.run.items_per_step, 0), config)
        self.schedule._remote = real  # else there is no object store
        self.updates = Updates(config, lambda ids, version: {})
        self.group = cast(DeepSpeedLearnerGroup, _Pause(pause_s / config.updates_per_step()))
        self.weights = weights
        self.publish_seconds: list[float] = []
        self.pool.start()
        while len(self.pool.handles()) < config.actors.count:
            time.sleep(0.1)
        self._publish(0)

    def step(self, step: int) -> None:
        """One training step."""
        self.updates.learn(self.group, step, self.schedule.collect(step))
        self._publish(step + 1)

    def _publish(self, version: int) -> None:
        self.publish_seconds.append(seconds(lambda: self.schedule.publish(version, self.weights)))


@contextmanager
def _crew(task_s: float, parts: int, *, real: bool) -> Iterator[Crew]:
    if not real:
        yield StandIns(task_s)
        return
    with connected(None):
        yield LightActors(task_s, parts)


def main(
    actors: Annotated[int, typer.Option(min=1, help="rollout actors")] = 1000,
    real: Annotated[bool, typer.Option(help="each a process of Ray's, else stand-ins in this process")] = False,
    task_s: Annotated[float, typer.Option(min=0.01, help="median seconds of a task")] = 2.0,
    pause: Annotated[float, typer.Option(min=0, help="the learner's time a step, in task times")] = 5.0,
    items_per_actor: Annotated[int, typer.Option(min=1, help="questions of a training step, times the actors")] = 8,
    parts: Annotated[int, typer.Option(min=1, help="tasks of a question")] = 1,
    staleness: Annotated[int, typer.Option(min=0, help="steps that rollouts run ahead")] = 3,
    steps: Annotated[int, typer.Option(min=2, help="training steps measured")] = 4,
    weights_mb: Annotated[int, typer.Option(min=1, help="real: megabytes of weights published each step")] = 100,
) -> None:
    """Share of time that the actors work, and what the controller costs, printed as a table."""
    overrides = {
        "actors.count": actors,
        "actors.items_per_task": 1,
        "actors.parts_per_item": parts,
        "actors.staleness": staleness,
        "run.items_per_step": items_per_actor * actors,
        "run.steps": 10**6,
        "learners.count": int(real),
        "objective.replay_items": min(3_000, items_per_actor * actors),  # full when the measurement begins
        "objective.replay_bytes": 10**13,
    }
    config = with_overrides(TrainConfig(), overrides)
    weights = cast(Weights, {"all": np.zeros(10**6 * weights_mb, np.uint8)} if real else {})
    with _crew(task_s, parts, real=real) as crew:
        controller = _Controller(crew, config, pause * task_s, weights, real=real)
        _measure(controller, crew, actors, steps, f"{actors} {'real actors' if real else 'stand-ins'}, {task_s:g} s")


def _measure(controller: _Controller, crew: Crew, actors: int, steps: int, title: str) -> None:
    process = psutil.Process()

    def spent() -> float:
        return float(sum(process.cpu_times()[:2])) - crew.cpu_s

    controller.step(0)  # fills the queues
    begin, before = time.monotonic(), spent()
    controller.step(1)
    memory = held_bytes()  # from here on a step's rollouts take the place of the last one's
    for step in range(2, steps + 1):
        controller.step(step)
    end, cost, grown = time.monotonic(), spent() - before, held_bytes() - memory
    crew.complete()
    busy = crew.times.within(begin, end) / ((end - begin) * actors)
    config = controller.schedule.config
    tasks = steps * config.run.items_per_step * config.actors.parts_per_item
    rows = [
        ("actors at work", f"{100 * busy:.1f} % of the time"),
        ("controller", f"{100 * cost / (end - begin):.1f} % of one core, {1e6 * cost / tasks:.0f} us a task"),
        ("its memory", f"{grown / 2**20:+.0f} MiB over {tasks - tasks // steps} tasks"),
        ("through it by value", f"{sum(map(len, made_answers(config.actors.parts_per_item))) / 1000:.1f} kB an item"),
        ("publishing weights", _publishing(controller)),
        ("tasks", f"{tasks / (end - begin):.0f} a second"),
    ]
    show(f"{title} a task, {steps} steps in {end - begin:.0f} s", ("", "measured"), rows)
    controller.pool.close()


def _publishing(controller: _Controller) -> str:
    if not controller.weights:
        return "no object store here"
    taken = statistics.median(controller.publish_seconds)
    return f"{controller.schedule.newest.nbytes / 1e6:.0f} MB to the object store in {taken:.2f} s"


if __name__ == "__main__":
    typer.run(main)
