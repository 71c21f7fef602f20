"""What a pool says of itself while it works."""

import time

from tests.support.waiting import wait_until
from tests.unit.actors.test_pool import Pools, ScriptedHost, pool_of, task  # noqa: F401 - a fixture


def test_state_moves_while_a_task_lasts(pool_of: Pools) -> None:  # noqa: F811 - the fixture
    host = ScriptedHost(hanging="slow")
    pool = pool_of(host, 1)
    pool.submit([task("slow"), task("b"), task("c"), task("d")])
    wait_until(lambda: "slow" in host.seen)
    state = pool.state()
    assert (state.waiting, state.given_out) == (2, 2)
    assert (state.wanted, state.pending, state.ready, state.draining) == (1, 0, 1, 0)
    wait_until(lambda: pool.state().busy_seconds > state.busy_seconds)
    later = pool.state()
    assert later.busy_seconds <= later.ready_seconds
    assert not later.deaths


def test_idle_actor_is_ready_but_not_busy(pool_of: Pools) -> None:  # noqa: F811
    pool = pool_of(ScriptedHost(), 2)
    wait_until(lambda: pool.state().ready_seconds > 0.1)
    assert pool.state().busy_seconds == 0.0


def test_deaths_drains_and_requeued_tasks_are_counted(pool_of: Pools) -> None:  # noqa: F811
    host = ScriptedHost(deaths={"bad": 1}, hanging="slow")
    pool = pool_of(host, 1)
    pool.collect(pool.submit([task("bad")]))
    assert pool.state().deaths == {"killed": 1}
    assert pool.state().requeued == 1
    pool.submit([task("slow")])
    wait_until(lambda: "slow" in host.seen)
    host.drained["node of 1.2"] = time.monotonic() + 60
    wait_until(lambda: pool.state().draining == 1)
    assert pool.state().ready == 0


def test_pool_without_actors_has_a_queue_alone(pool_of: Pools) -> None:  # noqa: F811
    pool = pool_of(ScriptedHost(), 0)
    pool.submit([task("a")])
    assert (pool.state().waiting, pool.state().wanted) == (1, 0)
