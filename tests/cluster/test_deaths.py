"""Real deaths of actors: the pool hears why, as far as Ray knows it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from queue import Queue
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from actors.death import Death
from actors.host import ActorLost, RayCalls
from tests.support.head_node import BIN
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.shows("Why actors die, as Ray tells")]
DRAIN = "DRAIN_NODE_REASON_PREEMPTION"


@ray.remote(num_cpus=0.1, max_restarts=0)
class Sleeper:
    """Sleeps until something happens to it."""

    def pid(self) -> int:
        return os.getpid()

    def sleep(self) -> None:
        time.sleep(600)

    def exit(self) -> None:
        sys.exit(3)


def death(handle: Any, method: str, fault: Callable[[], object]) -> Death:
    """What the pool's way of calling hears of ``handle``, whose ``method`` ``fault`` interrupts."""
    heard: Queue[Exception | None] = Queue()
    RayCalls().call(handle, method, lambda value, error: heard.put(error))
    time.sleep(0.5)  # it is at work
    fault()
    error = heard.get(timeout=60)
    assert isinstance(error, ActorLost)
    return error.death


def test_processes_that_end(nodes: Cluster) -> None:
    def of(method: str, fault: Callable[[Any, int], object]) -> Death:
        handle = Sleeper.remote()
        pid = ray.get(handle.pid.remote())
        return death(handle, method, lambda: fault(handle, pid))

    killed = of("sleep", lambda handle, pid: os.kill(pid, signal.SIGKILL))
    assert (killed.reason, "kill -9" in killed.text) == ("killed", True)
    told = of("sleep", lambda handle, pid: os.kill(pid, signal.SIGTERM))
    assert (told.reason, "SIGTERM" in told.text) == ("killed", True)
    ended = of("exit", lambda handle, pid: None)
    assert (ended.reason, "exit code 3" in ended.text) == ("exit", True)
    by_hand = of("sleep", lambda handle, pid: ray.kill(handle))
    assert (by_hand.reason, "ray.kill" in by_hand.text) == ("killed", True)


@pytest.mark.parametrize(("drained", "reason"), [(False, "node_lost"), (True, "preempted")])
def test_nodes_that_end(nodes: Cluster, drained: bool, reason: str) -> None:
    node = nodes.add_node(num_cpus=1, resources={"here": 1}, object_store_memory=100 << 20)
    handle = Sleeper.options(resources={"here": 0.1}).remote()
    ray.get(handle.pid.remote())

    def end() -> None:
        if drained:
            command = [str(BIN / "ray"), "drain-node", f"--address={nodes.address}", f"--node-id={node.node_id}"]
            command += [f"--reason={DRAIN}", "--reason-message=spot", "--deadline-remaining-seconds=2"]
            subprocess.run(command, check=True, capture_output=True)
            time.sleep(3)
        nodes.remove_node(node, allow_graceful=False)

    found = death(handle, "sleep", end)
    assert found.reason == reason
    assert "node" in found.text
    wait_until(lambda: sum(each["Alive"] for each in ray.nodes()) == 1)
