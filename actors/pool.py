"""Hands tasks to the rollout actors and loses none of them.

    driver --submit(tasks)--> queue --> [actor 1: loads its replica, then up to 2 tasks in flight]
       |                            --> [actor 2: ...                                            ]
    tickets                     ^                 |
       |                        '--- requeued <---' the actor died, or the task failed
       '--------------------------------------------> results by ticket --> collect(tickets)

Two tasks in flight per actor keep it busy while a result travels. A dead actor is restarted by Ray;
its tasks go back to the head of the queue at once, for whichever actor is free. Since a rollout depends on
its task alone, results are the same whoever computes them.

An actor works in order, so its death is laid to the oldest of its tasks alone, and a task of several items that
failed is tried again item by item: an item is set aside for its own failures, never for its neighbours'.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count

import ray
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from actors.env_runner import RolloutEnvRunner
from actors.task import SetAside, Task, TaskResult
from cacovid.errors import UserError

logger = logging.getLogger(__name__)
WORK, LOAD = "work", "load"  # tags of calls in flight
IN_FLIGHT_PER_ACTOR = 2
LOAD_TRIES = 3  # of one actor in a row
PROBE_SECONDS = 0.2  # a longer ping holds up the healthy actors while one restarts
PROBE_EVERY_SECONDS = 1.0


@dataclass
class _Job:
    """A task, or one item of a task that failed, on its way to an actor and back."""

    ticket: int
    place: int  # of its first item within the submitted task
    task: Task
    tries: int = 0  # failures so far


@dataclass
class _Ticket:
    """What has come back of a submitted task."""

    awaited: int = 1  # jobs not yet answered
    parts: dict[int, TaskResult] = field(default_factory=dict)  # by place


def _work(runner: RolloutEnvRunner, number: int, task: Task) -> tuple[int, TaskResult]:
    return number, runner.sample(task=task)


def _load(runner: RolloutEnvRunner) -> str | None:
    return runner.load()


class RolloutPool:
    """Task queue over an :class:`EnvRunnerGroup`; with no remote actors the local runner works in line."""

    def __init__(
        self, group: EnvRunnerGroup, *, max_retries: int, start_timeout_s: float, task_timeout_s: float
    ) -> None:
        self.group = group
        self.max_retries = max_retries
        self.start_timeout_s = start_timeout_s
        self.task_timeout_s = task_timeout_s
        self.lost_actors = 0  # deaths seen so far
        self.requeued = 0  # tasks given out again so far
        self._queue: deque[_Job] = deque()
        self._in_flight: dict[int, tuple[int, _Job]] = {}  # job number -> actor, job; oldest first
        self._busy_since: dict[int, float] = {}  # when an actor began its oldest task
        self._hung: set[int] = set()  # actors killed for that
        self._tickets: dict[int, _Ticket] = {}
        self._numbers = count()
        self._loading: set[int] = set()
        self._ready: set[int] = set()  # actors whose replica is loaded
        self._failed_loads: Counter[int] = Counter()  # in a row, by actor
        self._probed = self._last_ready = time.monotonic()

    def submit(self, tasks: Sequence[Task]) -> list[int]:
        """Queue tasks, give out as many as the actors take, and return a ticket for each."""
        tickets = [next(self._numbers) for _ in tasks]
        for ticket, task in zip(tickets, tasks, strict=True):
            self._tickets[ticket] = _Ticket()
            self._queue.append(_Job(ticket, 0, task))
        self._hand_out()
        return tickets

    def collect(self, tickets: Sequence[int]) -> list[TaskResult]:
        """Wait for these tasks and return their results in the order of ``tickets``.

        Raises:
            UserError: No actor can load its replica, or none was ready for ``start_timeout_s`` seconds.
        """
        while any(self._tickets[ticket].awaited for ticket in tickets):
            self._pump()
        done = [self._tickets.pop(ticket).parts for ticket in tickets]
        return [TaskResult.joined([parts[place] for place in sorted(parts)]) for parts in done]

    def settle(self) -> None:
        """Wait until nothing is queued or in flight; results stay to be collected."""
        while self._queue or self._in_flight:
            self._pump()

    def forget(self) -> None:
        """Drop every task given out so far; what actors are at work on is thrown away when it arrives."""
        self._queue.clear()
        self._tickets.clear()

    def _pump(self) -> None:
        if self.group.num_remote_env_runners() == 0:
            self._run_locally()
            return
        self._start_loading()
        self._hand_out()
        for actor, answer in self.group.fetch_ready_async_reqs(tags=[WORK, LOAD], timeout_seconds=0.1):
            if isinstance(answer, tuple):
                self._accept(*answer)
            else:
                self._accept_load(actor, answer)
        self._recover()

    def _run_locally(self) -> None:
        job = self._queue.popleft()
        self._in_flight[job.ticket] = (0, job)
        self._accept(job.ticket, self.group.local_env_runner.sample(task=job.task))

    def _start_loading(self) -> None:
        for actor in self.group.healthy_env_runner_ids():
            known = actor in self._ready or actor in self._loading or self._failed_loads[actor] >= LOAD_TRIES
            if not known and self.group.foreach_env_runner_async(_load, tag=LOAD, remote_worker_ids=[actor]):
                self._loading.add(actor)

    def _accept_load(self, actor: int, error: str | None) -> None:
        self._loading.discard(actor)
        if error is None:
            self._ready.add(actor)
            del self._failed_loads[actor]
        else:
            self._load_failed(actor, error)

    def _load_failed(self, actor: int, error: str) -> None:
        self._failed_loads[actor] += 1
        logger.error("rollout actor %d could not load its replica:\n%s", actor, error)
        given_up = sum(failures >= LOAD_TRIES for failures in self._failed_loads.values())
        if given_up == self.group.num_remote_env_runners():
            raise UserError(
                f"none of the {given_up} rollout actors can load its replica of the Video-LLM: {_last_line(error)}"
            )

    def _hand_out(self) -> None:
        load = Counter(actor for actor, _ in self._in_flight.values())
        actors = [actor for actor in self.group.healthy_env_runner_ids() if actor in self._ready]
        for _ in range(IN_FLIGHT_PER_ACTOR):
            # One each before a second one, so that a short queue is shared out evenly.
            for actor in actors:
                if self._queue and load[actor] < IN_FLIGHT_PER_ACTOR:
                    self._send(actor, self._queue.popleft())
                    load[actor] += 1

    def _send(self, actor: int, job: _Job) -> None:
        number = next(self._numbers)
        call = partial(_work, number=number, task=job.task)
        if self.group.foreach_env_runner_async(call, tag=WORK, remote_worker_ids=[actor]):
            if not any(holder == actor for holder, _ in self._in_flight.values()):
                self._busy_since[actor] = time.monotonic()
            self._in_flight[number] = (actor, job)
        else:
            self._queue.appendleft(job)

    def _accept(self, number: int, result: TaskResult) -> None:
        if number not in self._in_flight:
            return  # of an actor that was thought lost
        actor, job = self._in_flight.pop(number)
        self._busy_since[actor] = time.monotonic()
        if job.ticket not in self._tickets:
            return  # forgotten meanwhile
        if result.error is None:
            self._finish(job, result)
        else:
            self._fail(job, result.error)

    def _finish(self, job: _Job, result: TaskResult) -> None:
        ticket = self._tickets[job.ticket]
        ticket.parts[job.place] = result
        ticket.awaited -= 1

    def _fail(self, job: _Job, error: str) -> None:
        """Try the job again, item by item; give an item up that has failed by itself ``max_retries`` times."""
        tries, items = job.tries + 1, job.task.items
        if len(items) == 1 and tries >= self.max_retries:
            logger.error("item %r is given up:\n%s", items[0].id, error)
            self._finish(job, TaskResult(set_aside=(SetAside(items[0], f"failed {tries} times: {_last_line(error)}"),)))
            return
        logger.warning("items %s failed (%s); trying again", [item.id for item in items], _last_line(error))
        self.requeued += 1
        self._tickets[job.ticket].awaited += len(items) - 1
        self._queue.extendleft(
            _Job(job.ticket, job.place + place, replace(job.task, items=(item,)), tries)
            for place, item in reversed(list(enumerate(items)))
        )

    def _recover(self) -> None:
        """Requeue the tasks of dead actors and bring restarted actors back."""
        healthy = set(self.group.healthy_env_runner_ids())
        for actor in sorted((self._ready | self._loading) - healthy):
            self._lose(actor)
        now = time.monotonic()
        if self._ready:
            self._last_ready = now
        elif now - self._last_ready > self.start_timeout_s:
            raise UserError(
                f"no rollout actor was ready for {self.start_timeout_s:.0f} s: see that the cluster has room for them "
                "and the Ray logs, or raise run.start_timeout_s"
            )
        self._end_hanging(now)
        if now - self._probed > PROBE_EVERY_SECONDS:
            self.group.probe_unhealthy_env_runners(timeout_seconds=PROBE_SECONDS)
            self._probed = now

    def _end_hanging(self, now: float) -> None:
        """Kill actors whose oldest task takes too long (a decoder can hang); Ray restarts them."""
        for actor in {actor for actor, _ in self._in_flight.values()}:
            if now - self._busy_since[actor] > self.task_timeout_s:
                logger.error("rollout actor %d is killed: one task took over %.0f s", actor, self.task_timeout_s)
                self._busy_since[actor] = now
                self._hung.add(actor)
                ray.kill(self.group._worker_manager._actors[actor], no_restart=False)

    def _lose(self, actor: int) -> None:
        """Take a dead actor out of service; its oldest task is the one that it died of."""
        self.lost_actors += 1
        self._ready.discard(actor)
        self._last_ready = time.monotonic()  # the driver may have been learning since it saw the actor last
        reason = f"took over {self.task_timeout_s:.0f} s" if actor in self._hung else "the rollout actor died"
        self._hung.discard(actor)
        lost = {number: job for number, (holder, job) in self._in_flight.items() if holder == actor}
        for number in lost:
            del self._in_flight[number]
        for place, job in reversed(list(enumerate(lost.values()))):
            if job.ticket not in self._tickets:
                continue  # forgotten meanwhile
            if place == 0:
                self._fail(job, reason)
            else:
                self.requeued += 1
                self._queue.appendleft(job)
        if actor in self._loading:
            self._loading.discard(actor)
            self._load_failed(actor, "the rollout actor died while it loaded")


def end_actors(group: EnvRunnerGroup) -> None:
    """End the remote actors at once, busy or hanging as they may be (RLlib's ``stop`` waits for them)."""
    group._worker_manager.clear()


def _last_line(error: str) -> str:
    return error.strip().splitlines()[-1]
