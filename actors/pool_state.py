"""What a pool is doing at one moment, for whoever watches it."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from actors.death import Reason
from actors.ledger import TaskLedger
from actors.places import Places


@dataclass(frozen=True)
class PoolState:
    """Tasks and actors. Seconds are added up over all actors, since the pool began."""

    waiting: int  # tasks that no actor has
    given_out: int  # tasks that an actor has, a second one of which may wait behind its first
    requeued: int  # tasks given out again so far
    wanted: int = 0  # actors that there should be
    pending: int = 0  # wait for room, start, or load their replica
    ready: int = 0  # may be given tasks
    draining: int = 0  # on nodes that have announced their end
    ready_seconds: float = 0.0  # that actors had their replica
    busy_seconds: float = 0.0  # thereof with a task
    deaths: Mapping[Reason, int] = field(default_factory=dict)
    gpu_bytes: Mapping[int, int] = field(default_factory=dict)  # by number of actor, where there are GPUs

    @classmethod
    def of(cls, ledger: TaskLedger, places: Places | None) -> "PoolState":
        """The state of a pool with these books and places."""
        if places is None:
            return cls(waiting=len(ledger.queue), given_out=0, requeued=ledger.requeued)
        there = [actor for actor in places.actors if actor.handle is not None]
        return cls(
            waiting=len(ledger.queue),
            given_out=sum(len(actor.jobs) for actor in there),
            requeued=ledger.requeued,
            wanted=places.wanted(),
            pending=sum(not actor.ready for actor in there),
            ready=sum(actor.takes_jobs for actor in there),
            draining=sum(actor.leaves_at is not None for actor in there),
            ready_seconds=places.ready_seconds,
            busy_seconds=places.busy_seconds,
            deaths=Counter(places.deaths),
            gpu_bytes={actor.number: actor.gpu_bytes for actor in there if actor.gpu_bytes},
        )
