"""Submitted tasks until their results are collected: what waits, what failed how often, what has come back.

    submit(tasks) -> queue --taken by--> [pool's actors] --finish(job, result)--> take_results(tickets)
                       ^                       |
                       '------ requeue --------'  no fault of the job: its actor's node went
                       '------ fail -----------'  until an item has failed ``max_retries`` times by itself

A task of several items that failed is tried again item by item: an item is set aside for its own failures,
never for its neighbours'. The death of a process counts against the item in its hands only where the node lived
on: machines that are taken away say nothing about items. Ray learns of a lost machine seconds after its
processes are gone, so the last verdict waits for :data:`NODE_NOTICE_SECONDS`.
"""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from actors.task import SetAside, Task, TaskResult

logger = logging.getLogger(__name__)
NODE_NOTICE_SECONDS = 20.0  # Ray's health check misses a node for five periods of three seconds


@dataclass(frozen=True)
class Failure:
    """One attempt that came to nothing."""

    reason: str
    at: float  # time.monotonic()
    node: str | None = None  # where a process ended; None: there is nothing to blame but the work itself


@dataclass(eq=False)
class Job:
    """A task, or one item of a task that failed, on its way to an actor and back."""

    ticket: int
    place: int  # of its first item within the submitted task
    task: Task
    failures: tuple[Failure, ...] = ()
    closed: bool = False  # answered, or cut into other jobs: a second answer says nothing new


@dataclass
class _Ticket:
    """What has come back of a submitted task."""

    awaited: int = 1  # jobs not yet answered
    parts: dict[int, TaskResult] = field(default_factory=dict)  # by place


class TaskLedger:
    """The books of a pool; not thread-safe.

    Attributes:
        queue: Jobs to give out, first one first.
        requeued: Jobs given out again so far.
    """

    def __init__(self, max_retries: int, node_lives: Callable[[str], bool]) -> None:
        self.max_retries = max_retries
        self.node_lives = node_lives
        self.queue: deque[Job] = deque()
        self.requeued = 0
        self._doubtful: list[Job] = []  # failed often enough, but perhaps of lost nodes
        self._tickets: dict[int, _Ticket] = {}
        self._numbers = count()

    def submit(self, tasks: Sequence[Task], *, first: bool = False) -> list[int]:
        """Queue tasks, before all others with ``first``; returns a ticket for each."""
        jobs = [Job(next(self._numbers), 0, task) for task in tasks]
        self._tickets |= {job.ticket: _Ticket() for job in jobs}
        if first:
            self.queue.extendleft(reversed(jobs))
        else:
            self.queue.extend(jobs)
        return [job.ticket for job in jobs]

    def next_job(self) -> Job | None:
        """The job to give out next, taken off the queue; None: nothing waits."""
        while self.queue:
            job = self.queue.popleft()
            if not job.closed:
                return job
        return None

    def awaited(self) -> int:
        """Jobs that are not answered yet, waiting or under way."""
        return sum(ticket.awaited for ticket in self._tickets.values())

    def is_done(self, ticket: int) -> bool:
        """Whether this task has its whole result."""
        return not self._tickets[ticket].awaited

    def all_done(self) -> bool:
        """Whether nothing that was submitted is still awaited."""
        return self.awaited() == 0

    def take_results(self, tickets: Sequence[int]) -> list[TaskResult]:
        """The results of finished tasks, in the order of ``tickets``, which are used up."""
        done = [self._tickets.pop(ticket).parts for ticket in tickets]
        return [TaskResult.joined([parts[place] for place in sorted(parts)]) for parts in done]

    def forget(self) -> None:
        """Drop every task; what is still under way is thrown away when it is answered."""
        self.queue.clear()
        self._doubtful.clear()
        self._tickets.clear()

    def finish(self, job: Job, result: TaskResult) -> None:
        """``job`` was answered; nobody may want it any more, and the first answer counts."""
        ticket = self._tickets.get(job.ticket)
        if ticket is not None and not job.closed:
            job.closed = True
            ticket.parts[job.place] = result
            ticket.awaited -= 1

    def requeue(self, job: Job) -> None:
        """Give ``job`` out again, before all others; it is not to blame."""
        if job.ticket in self._tickets and not job.closed:
            self.requeued += 1
            self.queue.appendleft(job)

    def fail(self, job: Job, failure: Failure) -> None:
        """Try ``job`` again, item by item; give an item up that has failed by itself ``max_retries`` times."""
        if job.ticket not in self._tickets or job.closed:
            return
        job.closed = True
        job = replace(job, failures=(*job.failures, failure), closed=False)
        items = job.task.items
        if len(items) == 1 and len(job.failures) >= self.max_retries:
            self._judge(job, failure.at)
            return
        logger.warning("items %s failed (%s); trying again", [item.id for item in items], last_line(failure.reason))
        self.requeued += 1
        self._tickets[job.ticket].awaited += len(items) - 1
        self.queue.extendleft(
            replace(job, place=job.place + place, task=replace(job.task, items=(item,)))
            for place, item in reversed(list(enumerate(items)))
        )

    def judge_doubtful(self, now: float) -> None:
        """Decide on items whose last process died a while ago: by now it is known whether its node went with it."""
        doubtful, self._doubtful = self._doubtful, []
        for job in doubtful:
            self._judge(job, now)

    def counted(self, failures: Sequence[Failure]) -> int:
        """How many of ``failures`` are not explained by the loss of a node."""
        return sum(failure.node is None or self.node_lives(failure.node) for failure in failures)

    def _judge(self, job: Job, now: float) -> None:
        if self.counted(job.failures) < self.max_retries:
            self.requeue(job)
        elif any(each.node is not None and now - each.at < NODE_NOTICE_SECONDS for each in job.failures):
            self._doubtful.append(job)
        else:
            self._give_up(job)

    def _give_up(self, job: Job) -> None:
        (item,), last = job.task.items, job.failures[-1]
        logger.error("item %r is given up:\n%s", item.id, last.reason)
        reason = f"failed {len(job.failures)} times: {last_line(last.reason)}"
        self.finish(job, TaskResult(set_aside=(SetAside(item, reason),)))


def last_line(error: str) -> str:
    """The error itself, without the traceback above it."""
    return error.strip().splitlines()[-1]
