"""Actors that do nothing but take their time: a thousand in this process, or some tens of real ones.

Both stand behind the pool's own :class:`actors.host.ActorHost`. Task times are lognormal: one in a hundred takes six
times the median.
"""

import heapq
import itertools
import random
import threading
import time
from array import array
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import ray
from ray import cloudpickle

from actors.host import ActorHost, Done, RayCalls
from actors.task import RolloutTask, TaskResult
from benchmarks.light_actor import LightActor
from benchmarks.made import NO_WEIGHTS, made_answers, made_result

SPREAD = 0.8  # sigma of the lognormal times


class WorkTimes:
    """When the actors of a crew worked, as they tell it."""

    def __init__(self) -> None:
        self._times = array("d")  # begin, end, begin, end ... as few bytes as they can be

    def add(self, begin: float, end: float) -> None:
        """One task, by time.monotonic()."""
        self._times.extend((begin, end))

    def within(self, begin: float, end: float) -> float:
        """Seconds worked between two times, over all actors."""
        pairs = zip(self._times[::2], self._times[1::2], strict=True)
        return sum(max(0.0, min(to, end) - max(since, begin)) for since, to in pairs)


class Crew(ActorHost, Protocol):
    """A host of actors that are measured."""

    times: WorkTimes
    cpu_s: float  # of this process, which real actors would not cost the controller

    def complete(self) -> None:
        """Wait until ``times`` holds all that has been worked so far."""
        ...


@dataclass
class StandIns:
    """Actors that answer by the clock, in one thread of this process."""

    task_s: float
    due: list[tuple[float, int, Done, Any]] = field(default_factory=list)
    free_at: list[float] = field(default_factory=list)  # by handle
    times: WorkTimes = field(default_factory=WorkTimes)
    cpu_s: float = 0.0  # of the thread that answers

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._durations = random.Random(0)
        self._changed = threading.Condition()
        threading.Thread(target=self._answer, daemon=True).start()

    def start(self, number: int) -> int:
        """A stand-in, at once."""
        self.free_at.append(0.0)
        return len(self.free_at) - 1

    def call(self, handle: int, method: str, done: Done, *arguments: Any, apart: int = 0) -> None:  # noqa: ANN401
        """The answer comes when the stand-in is through with all that it was asked before."""
        now = time.monotonic()
        if method != "sample_apart":
            self._put(now, done, "node" if method == "node_id" else None)
            return
        taken = self._durations.lognormvariate(0.0, SPREAD) * self.task_s
        begin = max(now, self.free_at[handle])
        self.free_at[handle] = begin + taken
        self.times.add(begin, begin + taken)
        result = made_result(arguments[0], taken)
        self._put(begin + taken, done, (result, tuple(object() for _ in result.input_bytes)))

    def complete(self) -> None:
        """Nothing: a task's times are known when it is given out."""

    def end(self, handle: int) -> None:
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


class LightActors(RayCalls):
    """Real actors, each a process of Ray's, called as :class:`actors.host.RayHost` calls the rollout actors.

    Their processes hold no torch, so tasks and results cross as pickled bytes, which this process packs and unpacks
    as Ray would.

    Args:
        task_s: Median seconds of a task, which has one item.
        parts: Tasks of an item.
    """

    def __init__(self, task_s: float, parts: int) -> None:
        self.task_s = task_s
        self.times, self.cpu_s = WorkTimes(), 0.0
        self._durations = random.Random(0)
        self._called: Counter[Any] = Counter()  # tasks that an actor has still to answer
        self._ended: dict[Any, float] = {}  # when it answered last
        self._light = ray.remote(num_cpus=0)(LightActor)
        self._answers = ray.put(made_answers(parts))

    def start(self, number: int) -> Any:  # noqa: ANN401 - Ray's handle
        """A process of its own, which asks for no CPU."""
        return self._light.remote(self._answers)

    def call(self, handle: Any, method: str, done: Done, *arguments: Any, apart: int = 0) -> None:  # noqa: ANN401
        """See :class:`actors.host.ActorHost`."""
        if method != "sample_apart":
            super().call(handle, method, done, *arguments, apart=apart)
            return
        task: RolloutTask = arguments[0]

        def unpack(value: Any, error: Exception | None) -> None:  # noqa: ANN401
            self._called[handle] -= 1
            if error is not None:
                done(None, error)
                return
            (begin, end, answer), inputs = value
            self.times.add(begin, end)
            self._ended[handle] = end
            done((_result(cloudpickle.loads(answer), task, end - begin), inputs), None)

        self._called[handle] += 1
        packed = cloudpickle.dumps(replace(task, weights=NO_WEIGHTS))
        weights = (task.weights.id, [task.weights.held])
        taken = self._durations.lognormvariate(0.0, SPREAD) * self.task_s
        super().call(handle, method, unpack, packed, task.part.number, weights, taken, apart=apart)

    def complete(self) -> None:
        """Wait for the answers to what the actors are at work on."""
        now = time.monotonic()
        while any(tasks and self._ended.get(handle, 0.0) < now for handle, tasks in self._called.copy().items()):
            time.sleep(0.1)


def _result(made: TaskResult, task: RolloutTask, seconds: float) -> TaskResult:
    """``made`` as the result of ``task``."""
    rollouts = tuple(
        replace(rollout, item_id=item.id, step=task.step, policy_version=task.weights.version)
        for rollout, item in zip(made.rollouts, task.items, strict=True)
    )
    return replace(made, rollouts=rollouts, seconds=seconds)
