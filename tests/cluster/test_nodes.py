"""Nodes that come and go while a run is under way: nothing is lost, nobody is blamed, the policy is the same."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import ray
from ray._private.node import Node
from ray.cluster_utils import Cluster

from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cluster.training.cpo import CPO
from tests.cluster.conftest import STEPS
from tests.support.disturbed import Disturbed, running
from tests.support.joined_node import joined_node
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.shows("Nodes that come and go")]

NOTICE_SECONDS = 30.0


def add_rollout_node(nodes: Cluster) -> Node:
    return nodes.add_node(num_cpus=1, labels={"role": "rollout"}, object_store_memory=256 << 20)


@pytest.fixture
def apart(small: TrainConfig) -> TrainConfig:
    """Rollout actors run on nodes added for them alone, two on each."""
    return with_overrides(small, {"actors.labels": ["role=rollout"]})


def train(algorithm: CPO, steps: int) -> None:
    for _ in range(steps):
        algorithm.train()


def finish(algorithm: CPO, disturbed: Disturbed, schedule: str) -> None:
    train(algorithm, STEPS - algorithm.finished_steps)
    assert algorithm.skipped.skipped == 0
    disturbed.check(schedule, algorithm.train_cfg, algorithm.get_policy().state_dict())


def leave(algorithm: CPO, node: str) -> None:
    """Wait until no rollout actor is on the node of this id; all of them ended by themselves."""
    wait_until(lambda: all(actor.node != node for actor in algorithm.pool._actors()), NOTICE_SECONDS)
    assert algorithm.pool.lost_actors == 0


def test_node_lost_with_its_actors_and_inputs(
    nodes: Cluster, disturbed: Disturbed, apart: TrainConfig, tmp_path: Path
) -> None:
    """The replay buffer's inputs lie on the node: the next one's actors encode again what updates draw."""
    first = add_rollout_node(nodes)
    with running(apart, tmp_path) as algorithm:
        train(algorithm, 2)
        disturbed.fault()
        nodes.remove_node(first, allow_graceful=False)
        add_rollout_node(nodes)
        finish(algorithm, disturbed, "`kill -9` of the only rollout node, a new one at once")
        assert algorithm.pool.lost_actors == 2


def test_drained_node_is_empty_in_time(
    nodes: Cluster, disturbed: Disturbed, apart: TrainConfig, tmp_path: Path
) -> None:
    """Nothing is lost with it: its actors have left before, and others have their tasks."""
    first = add_rollout_node(nodes)
    with running(apart, tmp_path) as algorithm:
        train(algorithm, 2)
        disturbed.fault()
        drain = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", nodes.address]
        drain += ["--node-id", first.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
        subprocess.run([*drain, "--deadline-remaining-seconds", str(int(NOTICE_SECONDS))], check=True)
        add_rollout_node(nodes)
        leave(algorithm, first.node_id)
        nodes.remove_node(first, allow_graceful=False)
        finish(algorithm, disturbed, "drain of the only rollout node with 30 s notice, a new one at once")


def test_node_that_gets_sigterm_is_empty_in_time(
    nodes: Cluster, disturbed: Disturbed, apart: TrainConfig, tmp_path: Path
) -> None:
    """`ray start --block` itself then announces its end, and takes its node with it 30 s later."""
    with joined_node(tmp_path / "node", nodes.address) as node, running(apart, tmp_path) as algorithm:
        train(algorithm, 2)
        wait_until(lambda: len(algorithm.pool.handles()) == algorithm.train_cfg.actors.count)
        (there,) = {actor.node for actor in algorithm.pool._actors()}
        disturbed.fault()
        node.terminate()
        add_rollout_node(nodes)
        leave(algorithm, there)
        finish(algorithm, disturbed, "SIGTERM to the only rollout node's `ray start --block`, a new one at once")
        node.wait(2 * NOTICE_SECONDS)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_elastic_pool_follows_nodes_that_come_and_go(
    seed: int, nodes: Cluster, disturbed: Disturbed, apart: TrainConfig, tmp_path: Path
) -> None:
    """0, 3, 1, 4 nodes of one actor each; in the end all of them are idle and could be released."""
    elastic = {"actors.cpus": 1, "actors.count": 0, "actors.max": 4, "actors.idle_s": 2.0, "run.seed": seed}
    rollout_nodes: list[Node] = []

    def add(count: int) -> None:
        rollout_nodes.extend(add_rollout_node(nodes) for _ in range(count))

    first = add_rollout_node(nodes)  # for the initial policy
    with running(with_overrides(apart, elastic), tmp_path) as algorithm:
        nodes.remove_node(first, allow_graceful=False)
        first_steps = threading.Thread(target=train, args=(algorithm, 2))
        first_steps.start()
        time.sleep(5.0)  # without a single actor
        assert algorithm.finished_steps == 0
        add(3)
        first_steps.join()
        for node in rollout_nodes[:2]:
            disturbed.fault()
            nodes.remove_node(node, allow_graceful=False)
        train(algorithm, 1)
        add(3)
        finish(algorithm, disturbed, f"0, 3, 1, 4 nodes, seed {seed}")
        wait_until(lambda: not algorithm.pool.handles())
        learner = algorithm.train_cfg.learners.cpus
        wait_until(lambda: ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"] - learner)
