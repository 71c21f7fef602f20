"""Hands tasks to the rollout actors and loses none of them.

    driver --submit(tasks)--> ledger.queue --> [actor 1: loads its replica, then up to 2 tasks in flight]
       |                            |      --> [actor 2: ...                                            ]
       |                            ^                     |  one event a call that ends
       |                            '---- thread "pool" <-'  answers, deaths, deadlines
       '--collect(tickets) <--------------- results by ticket

A thread of the driver waits for whichever call ends first and gives the next task out at once, so that actors work
and deaths are seen while the driver learns or writes a checkpoint. Two tasks in flight per actor keep it busy while
a result travels. A dead actor's place gets a new process (:mod:`actors.places`); its tasks go back to the head of the
queue for whichever actor is free. Since a rollout depends on its task alone, results are the same whoever computes
them, and a task that is late may be given out twice.

An actor works in order, so its death is laid to the oldest of its tasks alone; whether it counts, the
:mod:`actors.ledger` decides.
"""

import logging
import statistics
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any

from actors.host import ActorHost, ActorLost, ActorUnreachable
from actors.ledger import Failure, Job, TaskLedger
from actors.places import Actor, Places
from actors.pool_state import PoolState
from actors.task import Task, TaskResult
from cacovid.config import ActorsConfig

logger = logging.getLogger(__name__)
IN_FLIGHT_PER_ACTOR = 2
TURN_SECONDS = 0.2  # the longest that a deadline is not looked at
SLOW_AFTER_TASKS = 16  # answers until it is known what is usual
SLOW_FACTOR = 4.0  # times the usual time, after which a task is late


class CollectAbandoned(Exception):
    """The results were not there in time, see :meth:`RolloutPool.stop_collecting`; the tasks go on."""


@dataclass(frozen=True)
class _Answer:
    """The end of one call."""

    actor: Actor
    handle: Any  # of the process that was called: another one may be there now
    job: Job | None  # None: of a call that is no task
    take: Callable[[Actor, Any], None]  # what to do with the value
    value: Any
    error: Exception | None


class RolloutPool:
    """Task queue over the actors of ``config``; with none of them ``work`` answers in line, in :meth:`collect`."""

    def __init__(
        self,
        host: ActorHost | None,
        config: ActorsConfig,
        work: Callable[[Task], TaskResult],
        start_timeout_s: float,
    ) -> None:
        self._host = host
        self._work = work
        self._ledger = TaskLedger(config.max_retries, node_lives=lambda node: host is None or host.node_lives(node))
        self._places = None if host is None else Places(host, config, self._ledger, self._load, start_timeout_s)
        self._durations: deque[float] = deque(maxlen=SLOW_AFTER_TASKS)  # seconds of the newest tasks
        self._collect_until: float | None = None
        self._looked = 0.0  # when all actors were looked at last
        self._error: BaseException | None = None  # that ended the thread
        self._answers: SimpleQueue[_Answer | None] = SimpleQueue()  # None: close
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="pool", daemon=True)

    def start(self) -> None:
        """Begin to start the actors."""
        if self._places is not None:
            self._thread.start()

    def watch(self, tell: Callable[[str], None]) -> None:
        """``tell`` is to hear, from the pool's thread, how many actors there are whenever that changes."""
        if self._places is not None:
            with self._changed:
                self._places.watch(tell)

    @property
    def requeued(self) -> int:
        """Tasks given out again so far."""
        return self._ledger.requeued

    @property
    def lost_actors(self) -> int:
        """Deaths seen so far."""
        return 0 if self._places is None else self._places.deaths.total()

    def state(self) -> PoolState:
        """What goes on at the moment; from any thread."""
        with self._changed:
            return PoolState.of(self._ledger, self._places)

    def leaving_nodes(self) -> frozenset[str]:
        """Nodes that have announced their end."""
        return frozenset() if self._places is None else self._places.leaving

    def handles(self) -> list[Any]:
        """Handles of the actors that are ready."""
        with self._changed:
            return [actor.handle for actor in self._actors() if actor.ready]

    def submit(self, tasks: Sequence[Task], *, first: bool = False) -> list[int]:
        """Queue tasks, give out as many as the actors take, and return a ticket for each.

        Args:
            first: Before those that wait already: somebody waits for these.
        """
        with self._changed:
            tickets = self._ledger.submit(tasks, first=first)
            self._hand_out(self._actors())
            return tickets

    def collect(self, tickets: Sequence[int], *, to_the_end: bool = False) -> list[TaskResult]:
        """Wait for these tasks and return their results in the order of ``tickets``.

        Args:
            to_the_end: Whatever :meth:`stop_collecting` says: the caller is at work on what cannot be left half done.

        Raises:
            UserError: No actor can load its replica, or none was ready for ``start_timeout_s`` seconds.
            CollectAbandoned: See :meth:`stop_collecting`; the tickets stay good.
        """
        waiting = deque(tickets)

        def done() -> bool:
            while waiting and self._ledger.is_done(waiting[0]):
                waiting.popleft()  # looked at once, however many there are
            return not waiting

        with self._changed:
            self._wait(done, to_the_end)
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
        if self._places is not None:
            self._places.end([actor for actor in self._actors() if actor.handle is not None])

    def _actors(self) -> list[Actor]:
        return [] if self._places is None else self._places.actors

    def _wait(self, done: Callable[[], bool], to_the_end: bool = False) -> None:
        while not done():
            if self._error is not None:
                raise self._error
            over = self._collect_until is not None and time.monotonic() >= self._collect_until
            if over and not to_the_end:
                raise CollectAbandoned
            if self._places is not None:
                self._changed.wait(TURN_SECONDS)
            else:
                job = self._ledger.next_job()
                assert job is not None, "somebody waits for what was never submitted"
                self._settle(job, self._work(job.task))

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
        """Take the answers that have come and give out anew; False when the pool is closed.

        A turn costs as much as it has answers: all actors are looked at now and then only.
        """
        try:
            answers = [self._answers.get(timeout=TURN_SECONDS)]
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
            assert self._places is not None
            self._hand_out([answer.actor for answer in answers if answer is not None])
            now = time.monotonic()
            if now - self._looked >= TURN_SECONDS:
                self._looked = now
                self._places.look_after(now)
                self._ledger.judge_doubtful(now)
                self._hand_out(self._actors())
                self._do_late_jobs_again()
            self._changed.notify_all()
        return True

    def _take(self, answer: _Answer) -> None:
        actor, error = answer.actor, answer.error
        assert self._places is not None
        if isinstance(error, ActorLost):
            self._places.lose(actor, error.death)
        elif isinstance(error, ActorUnreachable):
            self._places.ask_again(actor, str(error))
        elif error is not None:
            raise error  # our actors return what goes wrong in their work
        else:
            if answer.job is not None:
                actor.jobs.remove(answer.job)
                actor.busy_since = actor.idle_since = time.monotonic()
            answer.take(actor, answer.value)

    def _load(self, actor: Actor) -> None:
        assert self._places is not None
        self._call(actor, "node_id", _learn_node)
        self._call(actor, "load", self._places.loaded)

    def _call(self, actor: Actor, method: str, take: Callable[[Actor, Any], None], job: Job | None = None) -> None:
        """Call ``method``, with the job's task if there is one; ``take`` will get its value."""
        handle = actor.handle

        def done(value: Any, error: Exception | None) -> None:  # noqa: ANN401
            self._answers.put(_Answer(actor, handle, job, take, value, error))

        assert self._host is not None
        if job is None:
            self._host.call(handle, method, done)
        else:
            self._host.call(handle, method, done, job.task, apart=len(job.task.items))

    # Tasks ---------------------------------------------------------------------------------------

    def _hand_out(self, actors: Sequence[Actor]) -> None:
        """Tasks to ready actors, one each before a second one, so that a short queue is shared out evenly."""
        for load in range(IN_FLIGHT_PER_ACTOR):
            for actor in actors:
                if not self._ledger.queue:
                    return
                if actor.takes_jobs and len(actor.jobs) <= load and (job := self._ledger.next_job()) is not None:
                    self._send(actor, job)

    def _do_late_jobs_again(self) -> None:
        idle = [actor for actor in self._actors() if actor.takes_jobs and not actor.jobs]
        for actor, job in zip(idle, self._late_jobs() if idle else [], strict=False):
            logger.info("rollout actor %d does again what another one is late with", actor.number)
            self._send(actor, job)

    def _late_jobs(self) -> list[Job]:
        """Jobs that one actor alone holds that has been at its oldest one for several times the usual time."""
        if len(self._durations) < SLOW_AFTER_TASKS:
            return []
        began_before = time.monotonic() - SLOW_FACTOR * statistics.median(self._durations)
        holders = Counter(job for actor in self._actors() for job in actor.jobs)
        return [
            job
            for actor in self._actors()
            for job in actor.jobs
            if actor.busy_since < began_before and holders[job] == 1 and not job.closed
        ]

    def _send(self, actor: Actor, job: Job) -> None:
        if not actor.jobs:
            actor.busy_since = time.monotonic()
        actor.jobs.append(job)
        self._call(actor, "sample_apart", partial(self._accept, job), job)

    def _accept(self, job: Job, actor: Actor, returned: tuple[TaskResult, tuple[Any, ...]]) -> None:
        result, references = returned
        self._durations.append(result.seconds)
        actor.gpu_bytes = result.gpu_bytes
        self._settle(job, replace(result, inputs=references[: len(result.input_bytes)]))

    def _settle(self, job: Job, result: TaskResult) -> None:
        if result.error is None:
            self._ledger.finish(job, result)
        elif self._places is None or not self._places.holds(job):  # else somebody works on it besides
            self._ledger.fail(job, Failure(result.error, time.monotonic()))


def _learn_node(actor: Actor, node: str) -> None:
    actor.node = node
