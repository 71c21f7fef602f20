"""The pool's rules for tasks that fail, without starting processes (real deaths: tests/integration)."""

import pytest

from actors.pool import RolloutPool
from actors.task import RolloutTask, TaskResult
from cacovid.records import VideoQuestion

ITEM = VideoQuestion("q", "v.mp4", "what?", ("a", "b"), "A", "multiple choice", "test")


class InlineRunner:
    """Answers in line; fails on the steps told."""

    def __init__(self, failures: dict[tuple[int, int], int]) -> None:
        self.failures = failures
        self.seen: list[tuple[int, int]] = []

    def sample(self, task: RolloutTask) -> TaskResult:
        self.seen.append(task.key)
        if self.failures.get(task.key, 0) > 0:
            self.failures[task.key] -= 1
            return TaskResult(task.key, error="Traceback ...\nRuntimeError: out of memory")
        return TaskResult(task.key)


class InlineGroup:
    """The part of EnvRunnerGroup that a pool without remote actors uses."""

    def __init__(self, failures: dict[tuple[int, int], int]) -> None:
        self.local_env_runner = InlineRunner(failures)

    def num_remote_env_runners(self) -> int:
        return 0

    def healthy_env_runner_ids(self) -> list[int]:
        return []


def task(index: int, step: int = 0) -> RolloutTask:
    return RolloutTask(step, index, (ITEM,), 0, {}, 2)


def test_results_come_in_the_order_asked_for() -> None:
    pool = RolloutPool(InlineGroup({}), max_retries=3)
    pool.submit([task(0), task(1), task(2)])
    assert [result.key for result in pool.collect([(0, 2), (0, 0), (0, 1)])] == [(0, 2), (0, 0), (0, 1)]


def test_failed_task_is_tried_again_and_then_succeeds() -> None:
    group = InlineGroup({(0, 1): 2})
    pool = RolloutPool(group, max_retries=3)
    pool.submit([task(0), task(1)])
    results = pool.collect([(0, 0), (0, 1)])
    assert [result.set_aside for result in results] == [(), ()]
    assert group.local_env_runner.seen.count((0, 1)) == 3
    assert pool.requeued == 2


def test_task_that_always_fails_is_set_aside_with_its_error(caplog: pytest.LogCaptureFixture) -> None:
    pool = RolloutPool(InlineGroup({(0, 0): 99}), max_retries=3)
    pool.submit([task(0)])
    (result,) = pool.collect([(0, 0)])
    assert [(aside.item.id, aside.reason) for aside in result.set_aside] == [
        ("q", "failed 3 times: RuntimeError: out of memory")
    ]
    assert "out of memory" in caplog.text


def test_no_healthy_actor_for_too_long_is_an_error() -> None:
    class DeadGroup(InlineGroup):
        def num_remote_env_runners(self) -> int:
            return 1

        def fetch_ready_async_reqs(self, **kwargs: object) -> list[object]:
            return []

        def probe_unhealthy_env_runners(self, **kwargs: object) -> list[int]:
            return []

    pool = RolloutPool(DeadGroup({}), max_retries=3, start_timeout_s=0.05)
    pool.submit([task(0)])
    with pytest.raises(RuntimeError, match="no rollout actor was healthy"):
        pool.collect([(0, 0)])
