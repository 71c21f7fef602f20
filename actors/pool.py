"""Hands tasks to the rollout actors and loses none of them.

    driver --submit(tasks)--> queue --> [actor 1: up to 2 in flight]
                                    --> [actor 2: up to 2 in flight]   --> results by key --> collect(step)
                                ^                 |
                                '--- requeued <---' the actor died, or the task failed

Two tasks in flight per actor keep it busy while a result travels. A dead actor is restarted by Ray;
its tasks go back to the head of the queue at once, for whichever actor is free. Since a rollout depends on
its task alone, results are the same whoever computes them.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from functools import partial

from ray.rllib.env.env_runner_group import EnvRunnerGroup

from actors.env_runner import RolloutEnvRunner
from actors.task import EncodeTask, RolloutTask, SetAside, TaskResult

logger = logging.getLogger(__name__)
Task = RolloutTask | EncodeTask
TAG = "rollout"
IN_FLIGHT_PER_ACTOR = 2
PROBE_SECONDS = 0.2  # a longer ping holds up the healthy actors while one restarts
PROBE_EVERY_SECONDS = 1.0


def _sample(runner: RolloutEnvRunner, task: Task) -> TaskResult:
    return runner.sample(task=task)


class RolloutPool:
    """Task queue over an :class:`EnvRunnerGroup`; with no remote actors the local runner works in line."""

    def __init__(self, group: EnvRunnerGroup, max_retries: int, start_timeout_s: float = 600.0) -> None:
        self.group = group
        self.max_retries = max_retries
        self.start_timeout_s = start_timeout_s
        self.lost_actors = 0  # deaths seen so far
        self.requeued = 0  # tasks given out again so far
        self._queue: deque[Task] = deque()
        self._in_flight: dict[tuple[int, int], tuple[int, Task]] = {}
        self._results: dict[tuple[int, int], TaskResult] = {}
        self._tries: Counter[tuple[int, int]] = Counter()
        self._probed = time.monotonic()
        self._last_healthy = time.monotonic()

    def submit(self, tasks: Sequence[Task]) -> None:
        """Queue tasks and give out as many as the actors take."""
        self._queue.extend(tasks)
        self._hand_out()

    def collect(self, keys: Sequence[tuple[int, int]], tick: Callable[[], None] | None = None) -> list[TaskResult]:
        """Wait for these tasks and return their results in the order of ``keys``.

        Raises:
            RuntimeError: No actor has been healthy for ``start_timeout_s`` seconds.
        """
        while any(key not in self._results for key in keys):
            self._pump()
            if tick is not None:
                tick()
        return [self._results.pop(key) for key in keys]

    def settle(self) -> None:
        """Wait until nothing is queued or in flight; results stay to be collected."""
        while self._queue or self._in_flight:
            self._pump()

    def _pump(self) -> None:
        if self.group.num_remote_env_runners() == 0:
            self._run_locally()
            return
        self._hand_out()
        for _, result in self.group.fetch_ready_async_reqs(tags=TAG, timeout_seconds=0.1):
            self._accept(result)
        self._recover()

    def _run_locally(self) -> None:
        task = self._queue.popleft()
        self._in_flight[task.key] = (0, task)
        self._accept(self.group.local_env_runner.sample(task=task))

    def _hand_out(self) -> None:
        load = Counter(actor for actor, _ in self._in_flight.values())
        for _ in range(IN_FLIGHT_PER_ACTOR):
            # One each before a second one, so that a short queue is shared out evenly.
            for actor in self.group.healthy_env_runner_ids():
                if self._queue and load[actor] < IN_FLIGHT_PER_ACTOR:
                    self._send(actor, self._queue.popleft())
                    load[actor] += 1

    def _send(self, actor: int, task: Task) -> None:
        sent = self.group.foreach_env_runner_async(partial(_sample, task=task), tag=TAG, remote_worker_ids=[actor])
        if sent:
            self._in_flight[task.key] = (actor, task)
        else:
            self._queue.appendleft(task)

    def _accept(self, result: TaskResult) -> None:
        entry = self._in_flight.pop(result.key, None)
        if entry is None:
            return  # answered twice: once by an actor that was thought lost
        if result.error is None:
            self._results[result.key] = result
            return
        self._try_again(entry[1], result.error)

    def _try_again(self, task: Task, error: str) -> None:
        self._tries[task.key] += 1
        self.requeued += 1
        if self._tries[task.key] < self.max_retries:
            logger.warning("task %s failed (%s); giving it out again", task.key, error.strip().splitlines()[-1])
            self._queue.appendleft(task)
            return
        reason = f"failed {self._tries[task.key]} times: {error.strip().splitlines()[-1]}"
        logger.error("task %s is given up:\n%s", task.key, error)
        self._results[task.key] = TaskResult(
            key=task.key, set_aside=tuple(SetAside(item, reason) for item in task.items)
        )

    def _recover(self) -> None:
        """Requeue the tasks of dead actors and bring restarted actors back."""
        healthy = set(self.group.healthy_env_runner_ids())
        lost = [(key, task) for key, (actor, task) in self._in_flight.items() if actor not in healthy]
        if lost:
            self.lost_actors += len({self._in_flight[key][0] for key, _ in lost})
            for key, task in reversed(lost):
                del self._in_flight[key]
                self._try_again(task, "the rollout actor died")
        now = time.monotonic()
        if healthy:
            self._last_healthy = now
        elif now - self._last_healthy > self.start_timeout_s:
            raise RuntimeError(f"no rollout actor was healthy for {self.start_timeout_s:.0f} s: see the Ray logs")
        if now - self._probed > PROBE_EVERY_SECONDS:
            self.group.probe_unhealthy_env_runners(timeout_seconds=PROBE_SECONDS)
            self._probed = now
