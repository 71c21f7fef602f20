"""The pool's rules for tasks and actors that fail, without starting processes (real deaths: tests/integration)."""

from collections import Counter, deque
from collections.abc import Callable

import pytest

from actors.pool import IN_FLIGHT_PER_ACTOR, LOAD_TRIES, RolloutPool
from actors.task import PublishedWeights, RolloutTask, SetAside, TaskResult
from cacovid.errors import UserError
from cacovid.records import VideoQuestion


class Died(Exception):
    """The scripted actor's process ended."""


class Hangs(Exception):
    """The scripted actor has not answered yet."""


class ScriptedRunner:
    """Answers with the items' ids as reasons, unless the script tells it to fail or die."""

    def __init__(self, group: "ScriptedGroup") -> None:
        self.group = group

    def load(self) -> str | None:
        if self.group.load_failures > 0:
            self.group.load_failures -= 1
            return "Traceback ...\nRuntimeError: out of memory"
        return None

    def sample(self, task: RolloutTask) -> TaskResult:
        names = [item.id for item in task.items]
        self.group.seen.append("+".join(names))
        for name in names:
            if name == self.group.hanging:
                raise Hangs
            if self.group.deaths[name] > 0:
                self.group.deaths[name] -= 1
                raise Died
            if self.group.failures[name] > 0:
                self.group.failures[name] -= 1
                return TaskResult(error=f"Traceback ...\nRuntimeError: {name} is too large")
        return TaskResult(set_aside=tuple(SetAside(item, "answered") for item in task.items))


class ScriptedGroup:
    """The part of EnvRunnerGroup that a pool uses; calls are made when their answers are fetched."""

    def __init__(
        self,
        actors: int = 0,
        *,
        failures: dict[str, int] | None = None,
        deaths: dict[str, int] | None = None,
        load_failures: int = 0,
        returning: bool = True,
        hanging: str | None = None,
    ) -> None:
        self.failures, self.deaths, self.load_failures = Counter(failures), Counter(deaths), load_failures
        self.seen: list[str] = []
        self.longest = 0  # queue of an actor
        self.returning = returning
        self.hanging = hanging  # an item that its actor never answers
        self._worker_manager = self
        self._actors = {number: number for number in range(1, actors + 1)}  # as handles
        self.local_env_runner = ScriptedRunner(self)
        self.runners = {number: ScriptedRunner(self) for number in range(1, actors + 1)}
        self.healthy = set(self.runners)
        self.killed: set[int] = set()
        self.calls: dict[int, deque[Callable[[ScriptedRunner], object]]] = {number: deque() for number in self.runners}

    def num_remote_env_runners(self) -> int:
        return len(self.runners)

    def healthy_env_runner_ids(self) -> list[int]:
        return sorted(self.healthy)

    def foreach_env_runner_async(
        self, call: Callable[[ScriptedRunner], object], *, tag: str, remote_worker_ids: list[int]
    ) -> int:
        (actor,) = remote_worker_ids
        self.calls[actor].append(call)
        self.longest = max(self.longest, len(self.calls[actor]))
        return 1

    def fetch_ready_async_reqs(self, **kwargs: object) -> list[tuple[int, object]]:
        """One answer of each actor; a death takes all its calls along."""
        answers = []
        for actor in sorted(self.healthy):
            if self.calls[actor]:
                try:
                    if actor in self.killed:
                        raise Died
                    answers.append((actor, self.calls[actor][0](self.runners[actor])))
                    self.calls[actor].popleft()
                except Hangs:
                    continue
                except Died:
                    self.calls[actor].clear()
                    self.healthy.discard(actor)
                    self.killed.discard(actor)
        return answers

    def kill(self, actor: int, no_restart: bool = True) -> None:
        assert not no_restart
        self.killed.add(actor)

    def probe_unhealthy_env_runners(self, **kwargs: object) -> None:
        if self.returning:
            self.healthy = set(self.runners)


@pytest.fixture(autouse=True)
def _probe_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actors.pool.PROBE_EVERY_SECONDS", 0.0)


def pool_of(group: ScriptedGroup, **settings: float) -> RolloutPool:
    return RolloutPool(group, **{"max_retries": 3, "start_timeout_s": 60.0, "task_timeout_s": 60.0, **settings})


def task(*names: str) -> RolloutTask:
    items = tuple(VideoQuestion(name, "v.mp4", "what?", ("a", "b"), "A", "multiple choice", "test") for name in names)
    return RolloutTask(0, items, PublishedWeights(0, {}), 2)


def outcome(result: TaskResult) -> dict[str, str]:
    return {aside.item.id: aside.reason for aside in result.set_aside}


ACTORS = pytest.mark.parametrize("actors", [0, 1, 2])


@ACTORS
def test_results_come_in_the_order_asked_for(actors: int) -> None:
    pool = pool_of(ScriptedGroup(actors))
    a, b, c = pool.submit([task("a"), task("b"), task("c")])
    assert [outcome(result) for result in pool.collect([c, a, b])] == [{each: "answered"} for each in "cab"]


@ACTORS
def test_failed_task_is_tried_again_item_by_item(actors: int) -> None:
    group = ScriptedGroup(actors, failures={"b": 1})
    pool = pool_of(group)
    (result,) = pool.collect(pool.submit([task("a", "b", "c")]))
    assert list(outcome(result).items()) == [("a", "answered"), ("b", "answered"), ("c", "answered")]
    assert Counter(group.seen) == Counter(["a+b+c", "a", "b", "c"])
    assert pool.requeued == 1


@ACTORS
def test_item_that_always_fails_is_set_aside_alone(actors: int, caplog: pytest.LogCaptureFixture) -> None:
    group = ScriptedGroup(actors, failures={"b": 99})
    pool = pool_of(group)
    (result,) = pool.collect(pool.submit([task("a", "b")]))
    assert outcome(result) == {"a": "answered", "b": "failed 3 times: RuntimeError: b is too large"}
    assert "b is too large" in caplog.text


@pytest.mark.parametrize("actors", [1, 2])
def test_item_that_kills_its_actor_is_set_aside_without_its_neighbours(actors: int) -> None:
    """Neither those of its task nor those that wait behind it on the same actor."""
    group = ScriptedGroup(actors, deaths={"bad": 99})
    pool = pool_of(group)
    results = pool.collect(pool.submit([task("a", "bad"), task("b", "c"), task("d"), task("e")]))
    found = {name: reason for result in results for name, reason in outcome(result).items()}
    assert found == {"bad": "failed 3 times: the rollout actor died"} | dict.fromkeys("abcde", "answered")
    assert pool.lost_actors == 3


def test_every_actor_dying_at_once_loses_nothing() -> None:
    group = ScriptedGroup(2, deaths={"a": 1, "b": 1})
    pool = pool_of(group)
    results = pool.collect(pool.submit([task(name) for name in "abcdef"]))
    assert [outcome(result) for result in results] == [{name: "answered"} for name in "abcdef"]
    assert pool.lost_actors == 2


def test_no_actor_gets_more_than_it_should() -> None:
    group = ScriptedGroup(2)
    pool = pool_of(group)
    pool.collect(pool.submit([task(str(number)) for number in range(9)]))
    assert group.longest == IN_FLIGHT_PER_ACTOR


def test_forgotten_tasks_are_neither_answered_nor_tried_again() -> None:
    group = ScriptedGroup(1, deaths={"old": 99})
    pool = pool_of(group)
    pool.submit([task("first"), task("old"), task("queued")])
    pool._pump()
    pool._pump()
    pool.forget()
    (result,) = pool.collect(pool.submit([task("new")]))
    assert outcome(result) == {"new": "answered"}
    assert "queued" not in group.seen
    assert group.seen.count("old") == 1


def test_replica_that_loads_at_the_second_try_works() -> None:
    group = ScriptedGroup(1, load_failures=LOAD_TRIES - 1)
    pool = pool_of(group)
    (result,) = pool.collect(pool.submit([task("a")]))
    assert outcome(result) == {"a": "answered"}


def test_replicas_that_cannot_load_are_a_plain_error_and_no_fault_of_items() -> None:
    pool = pool_of(ScriptedGroup(2, load_failures=99))
    tickets = pool.submit([task("a")])
    with pytest.raises(UserError, match=r"none of the 2 rollout actors can load .*: RuntimeError: out of memory"):
        pool.collect(tickets)


def test_no_ready_actor_for_too_long_is_an_error() -> None:
    group = ScriptedGroup(1, deaths={"a": 1}, returning=False)
    pool = pool_of(group, start_timeout_s=0.05)
    tickets = pool.submit([task("a")])
    with pytest.raises(UserError, match="no rollout actor was ready for 0 s"):
        pool.collect(tickets)


def test_actor_that_hangs_on_an_item_is_killed_and_the_item_set_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    group = ScriptedGroup(1, hanging="bad")
    monkeypatch.setattr("actors.pool.ray.kill", group.kill)
    pool = pool_of(group, task_timeout_s=0.02)
    results = pool.collect(pool.submit([task("a", "bad"), task("b")]))
    found = {name: reason for result in results for name, reason in outcome(result).items()}
    assert found == {"a": "answered", "b": "answered", "bad": "failed 3 times: took over 0 s"}
