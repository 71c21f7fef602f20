"""A record's way from actor to learner: through the driver, as in the previous release, and past it, as in this one.

    before:  actor --- rollout and input, one value ---> driver --- put, both ---> learner
             a fixed pool: the driver itself gives tasks out and fetches results, while it waits for a step and not
             while it learns; a look at the actors' calls ends with the last of them or after 0.1 s
    now:     actor --- rollout ---> driver --- put, rollout alone ---> learner
               '--- input, by reference, fetched by the learner itself ---^
             :class:`actors.pool.RolloutPool` with its own thread

Both have the same actors, which make records of 7B shape at once, the same schedule, replay buffer and updates, and a
process that fetches what it is given as learners do and learns nothing. So the figures are what the path can carry;
all of it on one machine, where no byte crosses a network.
"""

import itertools
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, cast

import ray
import torch
import typer
from ray import cloudpickle

from actors.host import RayCalls
from actors.pool import IN_FLIGHT_PER_ACTOR, RolloutPool
from actors.task import RolloutTask, TaskResult
from benchmarks.made import GRID, WIDTH, made_result, questions
from benchmarks.memory import PeakMemory
from benchmarks.table import show, show_ratios
from benchmarks.timing import Spread, alternating_rounds
from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cacovid.data.order import ItemOrder
from cacovid.records import HeldRecord, PolicyInput, RolloutInput
from cluster.ray_cluster import connected
from cluster.training.rollout_schedule import RolloutSchedule
from cluster.training.updates import Updates
from learner.group import DeepSpeedLearnerGroup
from learner.record_cache import RecordCache
from learner.training_data import RecordData

TEXT = 64  # prompt columns beside the video
LOOK_SECONDS = 0.1  # of the former pool at its calls
START_SECONDS = 300.0


def made_input(width: int) -> RolloutInput:
    """What the policy reads of one item; its numbers do not matter."""
    columns, no_logits = torch.arange(TEXT + GRID.tokens), torch.zeros(0, 2)
    return RolloutInput(
        PolicyInput(
            features=torch.ones(GRID.tokens, width, dtype=torch.bfloat16),
            text=torch.ones(TEXT, width, dtype=torch.bfloat16),
            video_columns=columns[TEXT:],
            text_columns=columns[:TEXT],
            position_ids=columns[None],
            grid=GRID,
        ),
        no_logits,
        no_logits,
    )


class _Maker:
    """A rollout actor that has its records at hand."""

    def __init__(self, width: int) -> None:
        torch.set_num_threads(1)
        self._seen = made_input(width)

    def node_id(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def load(self) -> None:
        """Nothing."""

    def sample(self, task: RolloutTask) -> TaskResult:
        inputs = (self._seen,) * len(task.items)
        return replace(made_result(task), inputs=inputs, input_bytes=tuple(seen.nbytes() for seen in inputs))

    def sample_apart(self, task: RolloutTask) -> tuple[TaskResult | RolloutInput, ...]:
        result = self.sample(task)
        return (replace(result, inputs=()), *cast(tuple[RolloutInput, ...], result.inputs))


class _Makers(RayCalls):
    """Starts makers where the pool expects rollout actors."""

    def __init__(self, width: int) -> None:
        self._maker, self._width = ray.remote(num_cpus=0)(_Maker), width

    def start(self, number: int) -> Any:  # noqa: ANN401 - Ray's handle
        return self._maker.remote(self._width)


class _FormerPool:
    """The previous release's way with tasks, without what it did about deaths."""

    def __init__(self, actors: int, width: int) -> None:
        maker = ray.remote(num_cpus=0)(_Maker)
        self._load = {maker.remote(width): 0 for _ in range(actors)}
        ray.get([actor.load.remote() for actor in self._load])
        self._queue: deque[tuple[int, RolloutTask]] = deque()
        self._in_flight: dict[ray.ObjectRef, tuple[int, Any]] = {}
        self._results: dict[int, TaskResult] = {}
        self._tickets = itertools.count()

    def submit(self, tasks: Sequence[RolloutTask]) -> list[int]:
        tickets = [next(self._tickets) for _ in tasks]
        self._queue.extend(zip(tickets, tasks, strict=True))
        self._hand_out()
        return tickets

    def collect(self, tickets: Sequence[int]) -> list[TaskResult]:
        while any(ticket not in self._results for ticket in tickets):
            self._hand_out()
            for call in ray.wait(list(self._in_flight), num_returns=len(self._in_flight), timeout=LOOK_SECONDS)[0]:
                ticket, actor = self._in_flight.pop(call)
                self._load[actor] -= 1
                self._results[ticket] = ray.get(call)
        return [self._results.pop(ticket) for ticket in tickets]

    def _hand_out(self) -> None:
        for load in range(IN_FLIGHT_PER_ACTOR):
            for actor in self._load:
                if self._queue and self._load[actor] <= load:
                    ticket, task = self._queue.popleft()
                    self._in_flight[actor.sample.remote(task)] = (ticket, actor)
                    self._load[actor] += 1


class _Consumer:
    """A learner's process that fetches its records and learns nothing."""

    def __init__(self, cache_bytes: int) -> None:
        torch.set_num_threads(1)
        self._cache = RecordCache(cache_bytes)

    def update(self, records: Sequence[HeldRecord]) -> dict[str, float]:
        assert all(record is not None for record in self._cache.fetch(records)), "an input is lost"
        return {"loss": 0.0, "grad_norm": 0.0}


class _Group:
    """The learner group of one consumer."""

    def __init__(self, cache_bytes: int) -> None:
        self._consumer = ray.remote(num_cpus=0)(_Consumer).remote(cache_bytes)

    def update(self, *, training_data: RecordData) -> list[dict[str, float]]:
        return [ray.get(self._consumer.update.remote(training_data.records))]


@dataclass
class _Side:
    """One of the two ways, and what it cost the driver in each round."""

    pool: RolloutPool
    group: DeepSpeedLearnerGroup
    config: TrainConfig
    item_bytes: float = 0.0  # by value
    peaks: list[int] = field(default_factory=list)

    def work(self) -> None:
        """The steps of one round, from the first rollout to the last update."""
        cfg = self.config
        items = questions(cfg.run.steps * cfg.run.items_per_step)
        schedule = RolloutSchedule(self.pool, ItemOrder(items, cfg.run.items_per_step, 0), cfg)
        updates = Updates(cfg, lambda ids, version: {})
        with PeakMemory() as peak:
            schedule.publish(0, {})
            for step in range(cfg.run.steps):
                results = schedule.collect(step)
                updates.learn(self.group, step, results)
                schedule.publish(step + 1, {})
            self.item_bytes = sum(map(_by_value, results)) / cfg.run.items_per_step
        self.peaks.append(peak.nbytes)


def _by_value(result: TaskResult) -> int:
    """Bytes of ``result`` that the driver has fetched."""
    fetched = [seen for seen in result.inputs if isinstance(seen, RolloutInput)]
    return len(cloudpickle.dumps(replace(result, inputs=()))) + sum(seen.nbytes() for seen in fetched)


def main(
    actors: Annotated[int, typer.Option(min=1, help="rollout actors of each side")] = 2,
    items: Annotated[int, typer.Option(min=1, help="questions of a training step")] = 4,
    steps: Annotated[int, typer.Option(min=1, help="training steps of a round")] = 4,
    rounds: Annotated[int, typer.Option(min=1, help="turns of each side")] = 5,
    width: Annotated[int, typer.Option(min=1, help="width of the features; 3584 at 7B shape, 45 MB an item")] = WIDTH,
) -> None:
    """Items a second, bytes through the driver and its peak memory, before and now, printed as two tables."""
    overrides = {
        "actors.count": actors,
        "actors.items_per_task": 1,
        "run.items_per_step": items,
        "run.steps": steps,
        "objective.replay_items": items,
        "objective.replay_batch": items,
        "objective.replay_updates": 1,
    }
    config = with_overrides(TrainConfig(), overrides)
    with connected(None):
        group = cast(DeepSpeedLearnerGroup, _Group(cache_bytes=0))
        former = cast(RolloutPool, _FormerPool(actors, width))
        pool = RolloutPool(_Makers(width), config.actors, lambda task: TaskResult(), START_SECONDS)
        pool.start()
        while len(pool.handles()) < actors:
            time.sleep(0.1)
        sides = {
            "before: input through the driver": _Side(former, group, config),
            "now: input by reference": _Side(pool, group, config),
        }
        for side in sides.values():
            side.work()  # warms up
            side.peaks.clear()
        times = alternating_rounds({name: side.work for name, side in sides.items()}, rounds)
        pool.close()
    count = items * steps
    show_ratios(f"median of {rounds} rounds of {count} items", "items/s", times, lambda taken: count / taken)
    _show_driver(sides)


def _show_driver(sides: dict[str, _Side]) -> None:
    rows = [
        (name, f"{side.item_bytes / 1000:,.1f}", str(Spread.of(peak / 1e6 for peak in side.peaks)))
        for name, side in sides.items()
    ]
    show("the driver", ("", "kB an item by value", "MB more at the peak (min - max)"), rows)


if __name__ == "__main__":
    typer.run(main)
