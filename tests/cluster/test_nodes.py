"""Nodes that come and go while a run is under way: nothing is lost, nobody is blamed, the policy is the same."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import torch
from ray._private.node import Node
from ray.cluster_utils import Cluster

from cluster.training.cpo import CPO, CPOConfig
from tests.integration.conftest import SMALL_RUN
from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster

STEPS = 6
DRAIN_SECONDS = 30.0
Weights = dict[str, torch.Tensor]


def add_rollout_node(nodes: Cluster, actors: int = 2) -> Node:
    return nodes.add_node(num_cpus=0, resources={"rollout": actors}, object_store_memory=256 << 20)


@contextmanager
def running(table: Path, folder: Path, *, actors: int, learners: int, **overrides: object) -> Iterator[CPO]:
    """Rollout actors run where a node offers ``rollout``; no learner keeps a record that it has fetched."""
    changed = {
        **SMALL_RUN,
        "run.steps": STEPS,
        "data.train": str(table),
        "actors.cpus": 0,
        "learners.record_cache_bytes": 0,
        **{name.replace("__", "."): value for name, value in overrides.items()},
    }
    config = CPOConfig().training(overrides=changed, run_dir=str(folder)).learners(num_learners=learners)
    config = config.env_runners(num_env_runners=actors, custom_resources_per_env_runner={"rollout": 1})
    algorithm: CPO = config.build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()


def train(algorithm: CPO, steps: int) -> None:
    for _ in range(steps):
        algorithm.train()


@pytest.fixture(scope="module")
def undisturbed(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    with running(table, tmp_path_factory.mktemp("undisturbed"), actors=0, learners=0) as algorithm:
        train(algorithm, STEPS)
        weights = algorithm.get_policy().state_dict()
    ray.shutdown()
    return weights


def check(algorithm: CPO, undisturbed: Weights) -> None:
    """The whole run was done, no item is missing, and the policy is that of the run in the driver alone."""
    policy = algorithm.get_policy()
    weights = policy.state_dict()
    assert policy.metadata.trained_steps == STEPS
    assert algorithm.skipped.skipped == 0
    assert max(float((weights[name] - undisturbed[name]).abs().max()) for name in undisturbed) <= 1e-6


def test_node_lost_with_its_actors_and_inputs(
    undisturbed: Weights, nodes: Cluster, table: Path, tmp_path: Path
) -> None:
    """The replay buffer's inputs lie on the node: the next one's actors encode again what updates draw."""
    first = add_rollout_node(nodes)
    with running(table, tmp_path, actors=2, learners=1) as algorithm:
        train(algorithm, 2)
        nodes.remove_node(first, allow_graceful=False)
        add_rollout_node(nodes)
        train(algorithm, STEPS - 2)
        assert algorithm.pool.lost_actors == 2
        check(algorithm, undisturbed)


def test_drained_node_is_empty_in_time(undisturbed: Weights, nodes: Cluster, table: Path, tmp_path: Path) -> None:
    """Nothing is lost with it: its actors have left before, and others have their tasks."""
    first = add_rollout_node(nodes)
    with running(table, tmp_path, actors=2, learners=1) as algorithm:
        train(algorithm, 2)
        drain = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", nodes.address]
        drain += ["--node-id", first.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "test"]
        subprocess.run([*drain, "--deadline-remaining-seconds", str(int(DRAIN_SECONDS))], check=True)
        add_rollout_node(nodes)
        wait_until(lambda: all(actor.node != first.node_id for actor in algorithm.pool._actors()), DRAIN_SECONDS)
        nodes.remove_node(first, allow_graceful=False)
        train(algorithm, STEPS - 2)
        assert algorithm.pool.lost_actors == 0
        check(algorithm, undisturbed)


def test_elastic_pool_follows_nodes_that_come_and_go(
    undisturbed: Weights, nodes: Cluster, table: Path, tmp_path: Path
) -> None:
    """0, 3, 1, 4 nodes of one actor each; in the end all of them are idle and could be released."""
    rollout_nodes: list[Node] = []

    def add(count: int) -> None:
        rollout_nodes.extend(add_rollout_node(nodes, actors=1) for _ in range(count))

    with running(table, tmp_path, actors=0, learners=1, actors__max=4, actors__idle_s=2.0) as algorithm:
        first_steps = threading.Thread(target=train, args=(algorithm, 2))
        first_steps.start()
        time.sleep(5.0)  # without a single actor
        assert algorithm.finished_steps == 0
        add(3)
        first_steps.join()
        for node in rollout_nodes[:2]:
            nodes.remove_node(node, allow_graceful=False)
        train(algorithm, 1)
        add(3)
        train(algorithm, STEPS - 3)
        check(algorithm, undisturbed)
        wait_until(lambda: not algorithm.pool.handles())
        wait_until(lambda: ray.available_resources().get("rollout") == 4)
