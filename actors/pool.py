"""Hands tasks to the rollout actors and loses none of them.

    driver --submit(tasks)--> ledger.queue --> [actor 1: loads its replica, then up to 2 tasks in flight]
       |                            |      --> [actor 2: ...                                            ]
       |                            ^                     |  one event a call that ends
       |                            '---- thread "pool" <-'  answers, deaths, deadlines
       '--collect(tickets) <--------------- results by ticket

A thread of the driver waits for whichever call ends first and gives the next task out at once, so that actors work
and deaths are seen while the driver learns or writes a checkpoint. Two tasks in flight per actor keep it busy while
a result travels. A dead actor's place gets a new process; its tasks go back to the head of the queue for whichever
actor is free. Since a rollout depends on its task alone, results are the same whoever computes them.

An actor works in order, so its death is laid to the oldest of its tasks alone; whether it counts, the
:mod:`actors.ledger` decides.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from actors.host import ActorHost, ActorLost, ActorUnreachable
from actors.ledger import Failure, Job, TaskLedger, last_line
from actors.task import Task, TaskResult
from cacovid.errors import UserError

logger = logging.getLogger(__name__)
IN_FLIGHT_PER_ACTOR = 2
LOAD_TRIES = 3  # of one place in a row
PAUSE_SECONDS = 1.0  # before a lost actor's place is filled again, or an unreachable one is asked again
DEADLINES_SECONDS = 0.2  # between looks at what takes too long


class CollectAbandoned(Exception):
    """The results were not there in time, see :meth:`RolloutPool.stop_collecting`; the tasks go on."""


@dataclass(eq=False)
class _Actor:
    """One place of the pool, and the process that fills it."""

    number: int  # from 1
    handle: Any = None  # None: no process
    node: str | None = None  # where it runs, once it has said so
    ready: bool = False  # its replica is loaded
    jobs: deque[Job] = field(default_factory=deque)  # in flight, oldest first
    busy_since: float = 0.0  # when it began its oldest job
    call_after: float = 0.0  # when it may be started, or asked again
    asked: bool = False  # to load
    overdue: str | None = None  # why it was killed
    failed_loads: list[Failure] = field(default_factory=list)  # in a row


@dataclass(frozen=True)
class _Answer:
    """The end of one call."""

    actor: _Actor
    handle: Any  # of the process that was called: another one may be there now
    job: Job | None  # None: of a call that is no task
    take: Callable[[_Actor, Any], None]  # what to do with the value
    value: Any
    error: Exception | None


class RolloutPool:
    """Task queue over ``count`` actors; with none of them ``work`` answers in line, in :meth:`collect`.

    Attributes:
        lost_actors: Deaths seen so far.
    """

    def __init__(
        self,
        host: ActorHost | None,
        count: int,
        work: Callable[[Task], TaskResult],
        *,
        max_retries: int,
        start_timeout_s: float,
        task_timeout_s: float,
    ) -> None:
        self.start_timeout_s = start_timeout_s
        self.task_timeout_s = task_timeout_s
        self.lost_actors = 0
        self._collect_until: float | None = None
        self._host = host
        self._work = work
        self._ledger = TaskLedger(max_retries, node_lives=lambda node: host is None or host.node_lives(node))
        self._actors = [_Actor(number) for number in range(1, count + 1)]
        self._last_ready = time.monotonic()
        self._error: BaseException | None = None  # that ended the thread
        self._answers: SimpleQueue[_Answer | None] = SimpleQueue()  # None: close
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="pool", daemon=True)

    def start(self) -> None:
        """Begin to start the actors."""
        self._last_ready = time.monotonic()
        if self._actors:
            self._thread.start()

    @property
    def requeued(self) -> int:
        """Tasks given out again so far."""
        return self._ledger.requeued

    def handles(self) -> list[Any]:
        """Handles of the actors that are ready."""
        with self._changed:
            return [actor.handle for actor in self._actors if actor.ready]

    def submit(self, tasks: Sequence[Task], *, first: bool = False) -> list[int]:
        """Queue tasks, give out as many as the actors take, and return a ticket for each.

        Args:
            first: Before those that wait already: somebody waits for these.
        """
        with self._changed:
            tickets = self._ledger.submit(tasks, first=first)
            self._hand_out()
            return tickets

    def collect(self, tickets: Sequence[int]) -> list[TaskResult]:
        """Wait for these tasks and return their results in the order of ``tickets``.

        Raises:
            UserError: No actor can load its replica, or none was ready for ``start_timeout_s`` seconds.
            CollectAbandoned: See :meth:`stop_collecting`; the tickets stay good.
        """
        with self._changed:
            self._wait(lambda: self._ledger.is_done(tickets))
            return self._ledger.take_results(tickets)

    def stop_collecting(self, at: float) -> None:
        """From ``at`` (time.monotonic()) on, whoever waits for results is told that there will be none."""
        self._collect_until = at

    def settle(self) -> None:
        """Wait until every task is answered; results stay to be collected."""
        with self._changed:
            self._wait(self._ledger.all_done)

    def forget(self) -> None:
        """Drop every task given out so far; what actors are at work on is thrown away when it arrives."""
        with self._changed:
            self._ledger.forget()

    def close(self) -> None:
        """End the actors at once, busy or hanging as they may be."""
        if self._thread.is_alive():
            self._answers.put(None)
            self._thread.join()
        for actor in self._actors:
            if actor.handle is not None:
                assert self._host is not None
                self._host.end(actor.handle)
                actor.handle, actor.ready = None, False

    def _wait(self, done: Callable[[], bool]) -> None:
        while not done():
            if self._error is not None:
                raise self._error
            if self._collect_until is not None and time.monotonic() >= self._collect_until:
                raise CollectAbandoned
            if self._actors:
                self._changed.wait(DEADLINES_SECONDS)
            else:
                self._work_in_line()

    def _work_in_line(self) -> None:
        self._settle(job := self._ledger.queue.popleft(), self._work(job.task))

    # The thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._turn():
                pass
        except BaseException as error:  # noqa: BLE001 - whoever collects is to hear of it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _turn(self) -> bool:
        """Take the answers that have come, look at deadlines, give out; False when the pool is closed."""
        try:
            answers = [self._answers.get(timeout=DEADLINES_SECONDS)]
        except Empty:
            answers = []
        with self._changed:
            while not self._answers.empty():
                answers.append(self._answers.get())
            for answer in answers:
                if answer is None:
                    return False
                if answer.actor.handle is answer.handle:  # else of a process that was lost
                    self._take(answer)
            now = time.monotonic()
            self._start_actors(now)
            self._check_deadlines(now)
            self._ledger.judge_doubtful(now)
            self._hand_out()
            self._changed.notify_all()
        return True

    def _take(self, answer: _Answer) -> None:
        actor, error = answer.actor, answer.error
        if isinstance(error, ActorLost):
            self._lose(actor, str(error))
        elif isinstance(error, ActorUnreachable):
            self._ask_again(actor, str(error))
        elif error is not None:
            raise error  # our actors return what goes wrong in their work
        else:
            if answer.job is not None:
                actor.jobs.remove(answer.job)
                actor.busy_since = time.monotonic()
            answer.take(actor, answer.value)

    def _call(self, actor: _Actor, method: str, take: Callable[[_Actor, Any], None], job: Job | None = None) -> None:
        """Call ``method``, with the job's task if there is one; ``take`` will get its value."""
        handle = actor.handle

        def done(value: Any, error: Exception | None) -> None:  # noqa: ANN401
            self._answers.put(_Answer(actor, handle, job, take, value, error))

        assert self._host is not None
        if job is None:
            self._host.call(handle, method, done)
        else:
            self._host.call(handle, method, done, job.task, apart=len(job.task.items))

    # Actors --------------------------------------------------------------------------------------

    def _start_actors(self, now: float) -> None:
        """Fill empty places, and let each process load its replica."""
        for actor in self._actors:
            if actor.asked or now < actor.call_after or self._is_given_up(actor):
                continue
            if actor.handle is None:
                assert self._host is not None
                actor.handle = self._host.start(actor.number)
            actor.asked = True
            self._call(actor, "node_id", _learn_node)
            self._call(actor, "load", self._accept_load)

    def _is_given_up(self, actor: _Actor) -> bool:
        return self._ledger.counted(actor.failed_loads) >= LOAD_TRIES

    def _accept_load(self, actor: _Actor, error: str | None) -> None:
        if error is None:
            actor.ready = True
            actor.failed_loads.clear()
        else:
            actor.asked = False
            self._load_failed(actor, Failure(error, time.monotonic()))

    def _load_failed(self, actor: _Actor, failure: Failure) -> None:
        actor.failed_loads.append(failure)
        logger.error("rollout actor %d could not load its replica:\n%s", actor.number, failure.reason)
        if all(self._is_given_up(each) for each in self._actors):
            raise UserError(
                f"none of the {len(self._actors)} rollout actors can load its replica of the Video-LLM: "
                f"{last_line(failure.reason)}"
            )

    def _lose(self, actor: _Actor, why: str) -> None:
        """Empty the place of a dead actor; its oldest task is the one that it died of."""
        now = time.monotonic()
        logger.warning("rollout actor %d was lost: %s", actor.number, why)
        self.lost_actors += 1
        if actor.ready:
            failure = Failure(actor.overdue or "the rollout actor died", now, actor.node)
            for place, job in reversed(list(enumerate(actor.jobs))):
                if place == 0:
                    self._ledger.fail(job, failure)
                else:
                    self._ledger.requeue(job)
        elif actor.asked:
            self._load_failed(actor, Failure("the rollout actor died while it loaded", now, actor.node))
        self._empty(actor, now)

    def _empty(self, actor: _Actor, now: float) -> None:
        actor.handle = actor.node = actor.overdue = None
        actor.ready = actor.asked = False
        actor.jobs.clear()
        actor.call_after = now + PAUSE_SECONDS
        self._last_ready = now

    def _ask_again(self, actor: _Actor, why: str) -> None:
        """An actor that cannot be reached may be alive: others take its tasks, which count against nobody."""
        logger.warning("rollout actor %d cannot be reached: %s", actor.number, why)
        for job in reversed(actor.jobs):
            self._ledger.requeue(job)
        actor.jobs.clear()
        actor.ready = actor.asked = False
        actor.call_after = time.monotonic() + PAUSE_SECONDS

    def _check_deadlines(self, now: float) -> None:
        if any(actor.ready for actor in self._actors) or self._ledger.all_done():
            self._last_ready = now
        elif now - self._last_ready > self.start_timeout_s:
            raise UserError(
                f"no rollout actor was ready for {self.start_timeout_s:.0f} s: see that the cluster has room for them "
                "and the Ray logs, or raise run.start_timeout_s"
            )
        for actor in self._actors:  # a decoder can hang
            if actor.jobs and actor.overdue is None and now - actor.busy_since > self.task_timeout_s:
                actor.overdue = f"took over {self.task_timeout_s:.0f} s"
                logger.error("rollout actor %d is killed: one task %s", actor.number, actor.overdue)
                assert self._host is not None
                self._host.end(actor.handle)

    # Tasks ---------------------------------------------------------------------------------------

    def _hand_out(self) -> None:
        """Tasks to ready actors, one each before a second one, so that a short queue is shared out evenly."""
        for load in range(IN_FLIGHT_PER_ACTOR):
            for actor in self._actors:
                if self._ledger.queue and actor.ready and actor.overdue is None and len(actor.jobs) <= load:
                    self._send(actor, self._ledger.queue.popleft())

    def _send(self, actor: _Actor, job: Job) -> None:
        if not actor.jobs:
            actor.busy_since = time.monotonic()
        actor.jobs.append(job)
        self._call(actor, "sample_apart", partial(self._accept, job), job)

    def _accept(self, job: Job, actor: _Actor, returned: tuple[TaskResult, tuple[Any, ...]]) -> None:
        result, references = returned
        self._settle(job, replace(result, inputs=references[: len(result.input_bytes)]))

    def _settle(self, job: Job, result: TaskResult) -> None:
        if result.error is None:
            self._ledger.finish(job, result)
        else:
            self._ledger.fail(job, Failure(result.error, time.monotonic()))


def _learn_node(actor: _Actor, node: str) -> None:
    actor.node = node
