"""The places of a pool and the actors that fill them: started, loaded, watched, lost, let go.

    empty --start--> starting --load--> ready --drained, idle, overdue, dead--> empty
      ^                 |                                                         |
      '-----------------'------------- a little later, a new process -------------'

A fixed pool keeps every place filled. An elastic one asks for as many actors as there are tasks, within its bounds, and
lets those go that have had none for a while: actors that wait for room in the cluster are the demand that its
autoscaler sees, and nodes without actors are those that it can release.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.death import Death, Reason
from actors.host import ActorHost
from actors.ledger import Failure, Job, TaskLedger, last_line
from cacovid.config import ActorsConfig
from cacovid.errors import UserError

logger = logging.getLogger(__name__)
LOAD_TRIES = 3  # of one place in a row
PAUSE_SECONDS = 1.0  # before a lost actor's place is filled again, or an unreachable one is asked again
NODES_SECONDS = 1.0  # between looks at which nodes are being drained
HAND_BACK_SECONDS = 5.0  # before the end of its node an actor's tasks are given to others
TELL_SECONDS = 30.0  # between words that no actor is there


@dataclass(eq=False)
class Actor:
    """One place of the pool, and the process that fills it."""

    number: int  # from 1
    handle: Any = None  # None: no process
    node: str | None = None  # where it runs, once it has said so
    ready: bool = False  # its replica is loaded
    jobs: deque[Job] = field(default_factory=deque)  # in flight, oldest first
    busy_since: float = 0.0  # when it began its oldest job
    idle_since: float = 0.0  # when it had a job last, or was started
    call_after: float = 0.0  # when it may be started, or asked again
    asked: bool = False  # to load
    overdue: str | None = None  # why it was killed
    leaves_at: float | None = None  # its node has announced its end
    failed_loads: list[Failure] = field(default_factory=list)  # in a row
    gpu_bytes: int = 0  # that its process held after its newest task

    @property
    def takes_jobs(self) -> bool:
        """Whether it may be given something to do."""
        return self.ready and self.overdue is None and self.leaves_at is None

    def empty(self, now: float) -> None:
        """Nobody fills the place any more."""
        self.handle = self.node = self.overdue = self.leaves_at = None
        self.ready = self.asked = False
        self.gpu_bytes = 0
        self.jobs.clear()
        self.call_after = now + PAUSE_SECONDS


class Places:
    """Fills the places of a pool. Not thread-safe.

    Args:
        ledger: For how much there is to do, and which failures count.
        load: Lets an actor load its replica; :meth:`loaded` takes what becomes of it.

    Attributes:
        deaths: Seen so far, by reason.
        ready_seconds: That actors had their replica, added up over all of them.
        busy_seconds: Thereof with a task.
        leaving: Nodes that have announced their end.
    """

    def __init__(
        self,
        host: ActorHost,
        config: ActorsConfig,
        ledger: TaskLedger,
        load: Callable[[Actor], None],
        start_timeout_s: float,
    ) -> None:
        self.actors = [Actor(number) for number in range(1, config.places + 1)]
        self.deaths: Counter[Reason] = Counter()
        self.ready_seconds = self.busy_seconds = 0.0
        self.leaving: frozenset[str] = frozenset()
        self._host = host
        self._config = config
        self._ledger = ledger
        self._load = load
        self._start_timeout_s = start_timeout_s
        self._last_ready = self._last_told = self._asked_for_nodes = self._counted = time.monotonic()
        self._tell: Callable[[str], None] | None = None
        self._said = ""  # last

    def watch(self, tell: Callable[[str], None]) -> None:
        """``tell`` is to hear how many actors there are, now and whenever that changes."""
        self._tell, self._said = tell, ""

    def look_after(self, now: float) -> None:
        """Start whom the pool wants, end whom it does not, and see to deadlines.

        Raises:
            UserError: No actor was ready for ``start_timeout_s`` although there is something to do.
        """
        self._count_seconds(now)
        self._look_at_nodes(now)
        self._release_idle(now)
        self._fill(now)
        self._check_deadlines(now)

    def loaded(self, actor: Actor, error: str | None) -> None:
        """The replica is loaded, or not.

        Raises:
            UserError: No place's actors can load their replica.
        """
        if error is None:
            actor.ready = True
            actor.failed_loads.clear()
        else:
            actor.asked = False
            self._load_failed(actor, Failure(error, time.monotonic()))

    def lose(self, actor: Actor, death: Death) -> None:
        """Empty the place of a dead actor; its oldest task is the one that it died of."""
        now = time.monotonic()
        if actor.overdue is not None:
            death = Death("overdue", f"it was killed, for one task {actor.overdue}")
        elif actor.leaves_at is not None:
            death = Death("preempted", f"its node had announced its end; {death.text}")
        where = f"on node {actor.node}" if actor.node is not None else "before it had a node"
        logger.warning("rollout actor %d was lost %s (%s): %s", actor.number, where, death.reason, death.text)
        self.deaths[death.reason] += 1
        if actor.ready:
            failure = Failure(actor.overdue or f"the rollout actor died: {death.text}", now, actor.node)
            self._hand_back(actor, failure)
        elif actor.asked:
            self._load_failed(actor, Failure(f"the rollout actor died while it loaded: {death.text}", now, actor.node))
        self._host.end(actor.handle)
        actor.empty(now)
        self._last_ready = now

    def ask_again(self, actor: Actor, why: str) -> None:
        """An actor that cannot be reached may be alive: others take its tasks, which count against nobody."""
        logger.warning("rollout actor %d cannot be reached: %s", actor.number, why)
        self._hand_back(actor, None)
        actor.jobs.clear()
        actor.ready = actor.asked = False
        actor.call_after = time.monotonic() + PAUSE_SECONDS

    def end(self, actors: Sequence[Actor]) -> None:
        """End actors that are not to blame for anything; their jobs are for others."""
        for actor in actors:
            self._hand_back(actor, None)
            self._host.end(actor.handle)
            actor.empty(time.monotonic())

    def holds(self, job: Job, besides: Actor | None = None) -> bool:
        """Whether an actor (other than ``besides``) is at work on ``job``."""
        return any(job in actor.jobs for actor in self.actors if actor is not besides)

    def _hand_back(self, actor: Actor, failure: Failure | None) -> None:
        """``actor`` will answer none of its jobs: who works on one besides goes on, the others wait again.

        Args:
            failure: Of the oldest one; None: through no fault of any.
        """
        for place, job in reversed(list(enumerate(actor.jobs))):
            if self.holds(job, besides=actor):
                continue
            if failure is not None and place == 0:
                self._ledger.fail(job, failure)
            else:
                self._ledger.requeue(job)

    def wanted(self) -> int:
        """Actors that there should be: in an elastic pool one a task, within the bounds."""
        if not self._config.max:
            return self._config.count
        return min(max(self._ledger.awaited(), self._config.min), self._config.max)

    def _spare(self) -> int:
        """Actors beyond those that are wanted; negative where some are wanting."""
        return sum(actor.handle is not None for actor in self.actors) - self.wanted()

    def _fill(self, now: float) -> None:
        """Start processes at as many empty places as are wanted, and let each load its replica."""
        vacant = -self._spare()
        for actor in self.actors:
            if actor.asked or now < actor.call_after or self._is_given_up(actor):
                continue
            if actor.handle is None:
                if vacant <= 0:
                    continue
                vacant -= 1
                actor.handle = self._host.start(actor.number)
                actor.idle_since = now
            actor.asked = True
            self._load(actor)

    def _release_idle(self, now: float) -> None:
        """Let spare actors go that have been idle for long, those that still wait for room in the cluster first."""
        spare = max(0, self._spare())
        idle = [
            actor
            for actor in sorted(self.actors, key=lambda each: each.ready)
            if actor.handle is not None and not actor.jobs and now - actor.idle_since > self._config.idle_s
        ]
        self.end(idle[:spare])

    def _count_seconds(self, now: float) -> None:
        """Actors do since they were looked at last what they do now, nearly."""
        past, self._counted = now - self._counted, now
        ready = [actor for actor in self.actors if actor.ready]
        self.ready_seconds += past * len(ready)
        self.busy_seconds += past * sum(bool(actor.jobs) for actor in ready)

    def _look_at_nodes(self, now: float) -> None:
        """Actors whose nodes have announced their end get no new task, and are gone before it."""
        if now - self._asked_for_nodes < NODES_SECONDS:
            return
        self._asked_for_nodes = now
        draining = self._host.draining()
        self.leaving = frozenset(draining)
        for actor in self.actors:
            if actor.node is not None and actor.node in draining:
                if actor.leaves_at is None:
                    logger.warning("rollout actor %d leaves: its node %s is being drained", actor.number, actor.node)
                actor.leaves_at = draining[actor.node]
                if not actor.jobs or now > actor.leaves_at - HAND_BACK_SECONDS:
                    self.end([actor])

    def _check_deadlines(self, now: float) -> None:
        ready = sum(actor.ready for actor in self.actors)
        state = (
            f"actors: {ready} of {self._config.bounds}" if ready else f"waiting for actors: 0 of {self._config.bounds}"
        )
        if ready or self._ledger.all_done():
            self._last_ready = self._last_told = now
        elif now - self._last_told > TELL_SECONDS:
            self._last_told = now
            logger.warning(state)
        if self._tell is not None and state != self._said and not self._ledger.all_done():
            self._said = state
            self._tell(state)
        if now - self._last_ready > self._start_timeout_s:
            raise UserError(
                f"no rollout actor was ready for {self._start_timeout_s:.0f} s: see that the cluster has room for them "
                "and the Ray logs, or raise run.start_timeout_s"
            )
        for actor in self.actors:  # a decoder can hang
            if actor.jobs and actor.overdue is None and now - actor.busy_since > self._config.task_timeout_s:
                actor.overdue = f"took over {self._config.task_timeout_s:.0f} s"
                logger.error("rollout actor %d is killed: one task %s", actor.number, actor.overdue)
                self._host.end(actor.handle)

    def _is_given_up(self, actor: Actor) -> bool:
        return self._ledger.counted(actor.failed_loads) >= LOAD_TRIES

    def _load_failed(self, actor: Actor, failure: Failure) -> None:
        actor.failed_loads.append(failure)
        logger.error("rollout actor %d could not load its replica:\n%s", actor.number, failure.reason)
        if all(self._is_given_up(each) for each in self.actors):
            raise UserError(
                f"none of the {len(self.actors)} rollout actors can load its replica of the Video-LLM: "
                f"{last_line(failure.reason)}"
            )
