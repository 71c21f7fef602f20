"""The pool's rules for tasks and actors that fail, without starting processes (real deaths: tests/integration)."""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from actors.death import Death
from actors.host import ActorLost, ActorUnreachable, Done
from actors.places import LOAD_TRIES
from actors.pool import IN_FLIGHT_PER_ACTOR, SLOW_AFTER_TASKS, CollectAbandoned, RolloutPool
from actors.task import PublishedWeights, RolloutTask, SetAside, TaskResult
from cacovid.config import ActorsConfig
from cacovid.errors import UserError
from cacovid.records import VideoQuestion
from tests.support.waiting import wait_until


class Died(Exception):
    """The scripted actor's process ended."""


class Hangs(Exception):
    """The scripted actor has not answered yet."""


class ScriptedHost:
    """Actors that answer with the items' ids as reasons, unless the script tells them to fail or die.

    A thread answers one call of each actor after the other; a death takes all calls of its actor along.
    """

    def __init__(
        self,
        *,
        failures: dict[str, int] | None = None,
        deaths: dict[str, int] | None = None,
        unreachable: dict[str, int] | None = None,
        load_failures: int = 0,
        load_deaths: int = 0,
        returning: bool = True,
        hanging: str | None = None,
        nodes_lost: bool = False,
    ) -> None:
        self.failures, self.deaths, self.unreachable = Counter(failures), Counter(deaths), Counter(unreachable)
        self.load_failures, self.load_deaths = load_failures, load_deaths
        self.seen: list[str] = []
        self.longest = 0  # queue of an actor
        self.returning = returning  # lost actors come back
        self.hanging = hanging  # an item that its actor never answers
        self.nodes_lost = nodes_lost  # every death is that of a node
        self.calls: dict[str, deque[tuple[str, Done, tuple[object, ...]]]] = {}  # by handle
        self.drained: dict[str, float] = {}
        self.started: Counter[int] = Counter()  # by place
        self.at_work: dict[str, RolloutTask] = {}  # by handle
        self.dead: set[str] = set()
        self.lock = threading.RLock()
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._answer_calls, daemon=True)
        self.thread.start()

    def start(self, number: int) -> str:
        with self.lock:
            self.started[number] += 1
            handle = f"{number}.{self.started[number]}"
            if self.returning or self.started[number] == 1:
                self.calls[handle] = deque()
            return handle

    def call(self, handle: str, method: str, done: Done, *arguments: object, apart: int = 0) -> None:
        with self.lock:
            if handle in self.dead:
                done(None, ActorLost(Death("killed", "it was dead")))
            elif handle in self.calls:
                self.calls[handle].append((method, done, arguments))
                self.longest = max(self.longest, sum(name == "sample_apart" for name, _, _ in self.calls[handle]))

    def end(self, handle: str) -> None:
        self._lose(handle, "it was killed")

    def node_lives(self, node: str) -> bool:
        return not self.nodes_lost

    def draining(self) -> dict[str, float]:
        return self.drained

    def _answer_calls(self) -> None:
        while not self.closed.wait(0.0005):
            for handle in list(self.calls):
                with self.lock:
                    if self.calls[handle]:
                        self._answer(handle, *self.calls[handle][0])

    def _answer(self, handle: str, method: str, done: Done, arguments: tuple[object, ...]) -> None:
        try:
            value = getattr(self, f"_{method}")(handle, *arguments)
        except Hangs:
            return
        except Died:
            self._lose(handle, "it died")
            return
        except ActorUnreachable as error:
            self._drop(handle, error)
            return
        self.calls[handle].popleft()
        done(value, None)

    def _lose(self, handle: str, why: str) -> None:
        with self.lock:
            self.dead.add(handle)
            self._drop(handle, ActorLost(Death("killed", why)))

    def _drop(self, handle: str, error: Exception) -> None:
        self.at_work.pop(handle, None)
        lost, self.calls[handle] = self.calls.get(handle, deque()), deque()
        for _, done, _ in lost:
            done(None, error)

    def _node_id(self, handle: str) -> str:
        return f"node of {handle}"

    def _load(self, handle: str) -> str | None:
        if self.load_deaths > 0:
            self.load_deaths -= 1
            raise Died
        if self.load_failures > 0:
            self.load_failures -= 1
            return "Traceback ...\nRuntimeError: out of memory"
        return None

    def _sample_apart(self, handle: str, task: RolloutTask) -> tuple[TaskResult, tuple[()]]:
        return self._sample(handle, task), ()

    def _sample(self, handle: str, task: RolloutTask) -> TaskResult:
        names = [item.id for item in task.items]
        if self.at_work.get(handle) is not task:  # else it hangs, and is asked again and again
            self.at_work[handle] = task
            self.seen.append("+".join(names))
        for name in names:
            if name == self.hanging:
                raise Hangs
            if self.deaths[name] > 0:
                self.deaths[name] -= 1
                raise Died
            if self.unreachable[name] > 0:
                self.unreachable[name] -= 1
                raise ActorUnreachable("the connection broke")
            if self.failures[name] > 0:
                self.failures[name] -= 1
                return TaskResult(error=f"Traceback ...\nRuntimeError: {name} is too large")
        return TaskResult(set_aside=tuple(SetAside(item, "answered") for item in task.items))


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.places.PAUSE_SECONDS", 0.0)
    monkeypatch.setattr("actors.places.NODES_SECONDS", 0.0)
    monkeypatch.setattr("actors.pool.TURN_SECONDS", 0.005)
    monkeypatch.setattr("actors.ledger.NODE_NOTICE_SECONDS", 0.0)


@pytest.fixture
def pool_of() -> Iterator[Callable[..., RolloutPool]]:
    """Pools of scripted actors, closed in the end."""
    made: list[tuple[RolloutPool, ScriptedHost]] = []

    def make(host: ScriptedHost, actors: int, start_timeout_s: float = 60.0, **settings: float) -> RolloutPool:
        config = ActorsConfig(**{"count": actors, "max_retries": 3, "task_timeout_s": 60.0, **settings})
        pool = RolloutPool(host if config.places else None, config, partial(host._sample, "driver"), start_timeout_s)
        made.append((pool, host))
        pool.start()
        return pool

    yield make
    for pool, host in made:
        pool.close()
        host.closed.set()


def task(*names: str) -> RolloutTask:
    items = tuple(VideoQuestion(name, "v.mp4", "what?", ("a", "b"), "A", "multiple choice", "test") for name in names)
    return RolloutTask(0, items, PublishedWeights(0, {}), 2)


def outcome(result: TaskResult) -> dict[str, str]:
    return {aside.item.id: aside.reason for aside in result.set_aside}


Pools = Callable[..., RolloutPool]
ACTORS = pytest.mark.parametrize("actors", [0, 1, 2])


@ACTORS
def test_results_come_in_the_order_asked_for(pool_of: Pools, actors: int) -> None:
    pool = pool_of(ScriptedHost(), actors)
    a, b, c = pool.submit([task("a"), task("b"), task("c")])
    assert [outcome(result) for result in pool.collect([c, a, b])] == [{each: "answered"} for each in "cab"]


@ACTORS
def test_failed_task_is_tried_again_item_by_item(pool_of: Pools, actors: int) -> None:
    host = ScriptedHost(failures={"b": 1})
    pool = pool_of(host, actors)
    (result,) = pool.collect(pool.submit([task("a", "b", "c")]))
    assert list(outcome(result).items()) == [("a", "answered"), ("b", "answered"), ("c", "answered")]
    assert Counter(host.seen) == Counter(["a+b+c", "a", "b", "c"])
    assert pool.requeued == 1


@ACTORS
def test_item_that_always_fails_is_set_aside_alone(
    pool_of: Pools, actors: int, caplog: pytest.LogCaptureFixture
) -> None:
    host = ScriptedHost(failures={"b": 99})
    pool = pool_of(host, actors)
    (result,) = pool.collect(pool.submit([task("a", "b")]))
    assert outcome(result) == {"a": "answered", "b": "failed 3 times: RuntimeError: b is too large"}
    assert "b is too large" in caplog.text


@pytest.mark.parametrize("actors", [1, 2])
def test_item_that_kills_its_actor_is_set_aside_without_its_neighbours(pool_of: Pools, actors: int) -> None:
    """Neither those of its task nor those that wait behind it on the same actor."""
    host = ScriptedHost(deaths={"bad": 99})
    pool = pool_of(host, actors)
    results = pool.collect(pool.submit([task("a", "bad"), task("b", "c"), task("d"), task("e")]))
    found = {name: reason for result in results for name, reason in outcome(result).items()}
    assert found == {"bad": "failed 3 times: the rollout actor died: it died"} | dict.fromkeys("abcde", "answered")
    assert pool.lost_actors == 3


def test_every_actor_dying_at_once_loses_nothing(pool_of: Pools) -> None:
    host = ScriptedHost(deaths={"a": 1, "b": 1})
    pool = pool_of(host, 2)
    results = pool.collect(pool.submit([task(name) for name in "abcdef"]))
    assert [outcome(result) for result in results] == [{name: "answered"} for name in "abcdef"]
    assert pool.lost_actors == 2


def test_no_actor_gets_more_than_it_should(pool_of: Pools) -> None:
    host = ScriptedHost()
    pool = pool_of(host, 2)
    pool.collect(pool.submit([task(str(number)) for number in range(9)]))
    assert host.longest == IN_FLIGHT_PER_ACTOR


def test_forgotten_tasks_are_neither_answered_nor_tried_again(pool_of: Pools) -> None:
    host = ScriptedHost(deaths={"old": 99}, hanging="old")
    pool = pool_of(host, 1)
    pool.submit([task("first"), task("old"), task("queued")])
    wait_until(lambda: "old" in host.seen)
    pool.forget()
    host.hanging = None
    (result,) = pool.collect(pool.submit([task("new")]))
    assert outcome(result) == {"new": "answered"}
    assert "queued" not in host.seen
    assert host.seen.count("old") == 1


def test_replica_that_loads_at_the_second_try_works(pool_of: Pools) -> None:
    host = ScriptedHost(load_failures=LOAD_TRIES - 1)
    pool = pool_of(host, 1)
    (result,) = pool.collect(pool.submit([task("a")]))
    assert outcome(result) == {"a": "answered"}


def test_replicas_that_cannot_load_are_a_plain_error_and_no_fault_of_items(pool_of: Pools) -> None:
    pool = pool_of(ScriptedHost(load_failures=99), 2)
    tickets = pool.submit([task("a")])
    with pytest.raises(UserError, match=r"none of the 2 rollout actors can load .*: RuntimeError: out of memory"):
        pool.collect(tickets)


def test_no_ready_actor_for_too_long_is_an_error(pool_of: Pools) -> None:
    host = ScriptedHost(deaths={"a": 1}, returning=False)
    pool = pool_of(host, 1, start_timeout_s=0.05)
    tickets = pool.submit([task("a")])
    with pytest.raises(UserError, match="no rollout actor was ready for 0 s"):
        pool.collect(tickets)


def test_actor_that_hangs_on_an_item_is_killed_and_the_item_set_aside(pool_of: Pools) -> None:
    host = ScriptedHost(hanging="bad")
    pool = pool_of(host, 1, task_timeout_s=0.02)
    results = pool.collect(pool.submit([task("a", "bad"), task("b")]))
    found = {name: reason for result in results for name, reason in outcome(result).items()}
    assert found == {"a": "answered", "b": "answered", "bad": "failed 3 times: took over 0 s"}


@pytest.mark.parametrize("actors", [1, 2])
def test_nodes_that_go_are_no_fault_of_the_items_in_hand(pool_of: Pools, actors: int) -> None:
    pool = pool_of(ScriptedHost(deaths={"good": 7}, nodes_lost=True), actors)
    (result,) = pool.collect(pool.submit([task("good")]))
    assert outcome(result) == {"good": "answered"}
    assert pool.lost_actors == 7


def test_verdict_waits_until_the_loss_of_a_node_would_be_known(pool_of: Pools, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray tells of the processes of a lost machine first, and of the machine seconds later."""
    monkeypatch.setattr("actors.ledger.NODE_NOTICE_SECONDS", 60.0)
    host = ScriptedHost(deaths={"good": 3})
    pool = pool_of(host, 1)
    tickets = pool.submit([task("good"), task("other")])
    wait_until(lambda: "other" in host.seen)
    assert not pool._ledger.all_done()
    host.nodes_lost = True
    assert [outcome(result) for result in pool.collect(tickets)] == [{"good": "answered"}, {"other": "answered"}]


def test_actor_that_cannot_be_reached_for_a_while_is_neither_dead_nor_blamed_on_an_item(pool_of: Pools) -> None:
    host = ScriptedHost(unreachable={"a": 5})
    pool = pool_of(host, 1)
    results = pool.collect(pool.submit([task("a"), task("b")]))
    assert [outcome(result) for result in results] == [{"a": "answered"}, {"b": "answered"}]
    assert pool.lost_actors == 0
    assert host.started[1] == 1


def test_nodes_that_go_while_replicas_load_are_no_load_failures(pool_of: Pools) -> None:
    pool = pool_of(ScriptedHost(load_deaths=LOAD_TRIES + 2, nodes_lost=True), 1)
    (result,) = pool.collect(pool.submit([task("a")]))
    assert outcome(result) == {"a": "answered"}


def test_actors_work_on_while_nobody_collects(pool_of: Pools) -> None:
    """As while the learner learns: the queue is worked off, deaths are seen, dead actors come back."""
    host = ScriptedHost(deaths={"2": 1})
    pool = pool_of(host, 1)
    tickets = pool.submit([task(str(number)) for number in range(9)])
    wait_until(lambda: pool._ledger.all_done())
    assert pool.lost_actors == 1
    assert [outcome(result) for result in pool.collect(tickets)] == [{str(number): "answered"} for number in range(9)]


def test_whoever_waits_for_results_can_be_told_to_stop(pool_of: Pools) -> None:
    host = ScriptedHost(hanging="slow")
    pool = pool_of(host, 1)
    tickets = pool.submit([task("slow")])
    pool.stop_collecting(time.monotonic() + 0.05)
    with pytest.raises(CollectAbandoned):
        pool.collect(tickets)
    host.hanging = None
    wait_until(lambda: pool._ledger.all_done())


def test_elastic_pool_follows_its_queue_and_lets_idle_actors_go(pool_of: Pools) -> None:
    host = ScriptedHost(hanging="slow")
    pool = pool_of(host, 0, min=1, max=3, idle_s=0.05)
    wait_until(lambda: len(pool.handles()) == 1)
    tickets = pool.submit([task("slow") for _ in range(5)])
    wait_until(lambda: len(pool.handles()) == 3)
    host.hanging = None
    assert [outcome(result) for result in pool.collect(tickets)] == [{"slow": "answered"}] * 5
    wait_until(lambda: len(pool.handles()) == 1)
    time.sleep(0.2)
    assert len(pool.handles()) == 1
    assert pool.lost_actors == 0


def test_elastic_pool_without_actors_waits_for_them(pool_of: Pools) -> None:
    host = ScriptedHost()
    pool = pool_of(host, 0, min=0, max=2, idle_s=0.02)
    for _ in range(3):
        wait_until(lambda: not pool.handles())
        (result,) = pool.collect(pool.submit([task("a")]))
        assert outcome(result) == {"a": "answered"}


def test_drained_node_is_empty_before_its_end_and_no_item_is_blamed(
    pool_of: Pools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The actor gives back what it cannot finish; a new one, elsewhere, takes it."""
    monkeypatch.setattr("actors.places.HAND_BACK_SECONDS", 0.1)
    host = ScriptedHost(hanging="slow")
    pool = pool_of(host, 1)
    tickets = pool.submit([task("slow"), task("next")])
    wait_until(lambda: "slow" in host.seen)
    host.drained["node of 1.1"] = time.monotonic() + 0.4
    tickets += pool.submit([task("new")])
    wait_until(lambda: "1.1" in host.dead)
    assert time.monotonic() < host.drained["node of 1.1"] + 0.2
    host.hanging = None
    assert [outcome(result) for result in pool.collect(tickets)] == [{n: "answered"} for n in ("slow", "next", "new")]
    assert host.started[1] == 2
    assert pool.lost_actors == 0


def test_late_task_is_done_again_by_an_idle_actor(pool_of: Pools) -> None:
    """Also those that wait behind it; the late answers say nothing new when they come."""
    host = ScriptedHost(hanging="slow")
    pool = pool_of(host, 2)
    pool.collect(pool.submit([task(str(number)) for number in range(SLOW_AFTER_TASKS)]))
    tickets = pool.submit([task("slow")])
    wait_until(lambda: host.seen.count("slow") == 2)
    host.hanging = None
    (result,) = pool.collect(tickets)
    assert outcome(result) == {"slow": "answered"}
    pool.settle()
    assert [outcome(each) for each in pool.collect(pool.submit([task("after")]))] == [{"after": "answered"}]


def test_what_cannot_be_left_half_done_is_waited_for_all_the_same(pool_of: Pools) -> None:
    """Inputs that an update needs: a run that gave them up would save its learners in the middle of a step."""
    pool = pool_of(ScriptedHost(hanging="wanted"), 1)
    pool.stop_collecting(time.monotonic() - 1.0)
    (result,) = pool.collect(pool.submit([task("needed")]), to_the_end=True)
    assert outcome(result) == {"needed": "answered"}
    with pytest.raises(CollectAbandoned):
        pool.collect(pool.submit([task("wanted")]))
