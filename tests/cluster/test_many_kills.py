"""Fifty node kills in one run."""

import threading
from pathlib import Path

import pytest
from ray._private import state
from ray._private.node import Node
from ray.cluster_utils import Cluster

from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cluster.training.cpo import CPO
from tests.support.disturbed import Disturbed, running
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(3600), pytest.mark.shows("Fifty node kills")]

KILLS = 50
PATIENCE_S = 300.0


def hosts_an_actor(node: Node) -> bool:
    """Starting or at work."""
    return any(
        actor["Address"]["NodeID"] == node.node_id and actor["State"] in ("PENDING_CREATION", "ALIVE")
        for actor in state.actors().values()
    )


def is_at_work(algorithm: CPO, node: Node) -> bool:
    return any(actor.node == node.node_id and actor.jobs for actor in algorithm.pool._actors())


def test_fifty_node_kills(nodes: Cluster, disturbed: Disturbed, small: TrainConfig, tmp_path: Path) -> None:
    """Two nodes of one actor each: in turn that whose actor starts and that whose actor is at work, a step later."""
    config = with_overrides(small, {"run.steps": 5000, "actors.labels": ["role=rollout"], "actors.cpus": 1})
    over = threading.Event()

    def train(algorithm: CPO) -> None:
        while not over.is_set():
            algorithm.train()

    def add() -> Node:
        return nodes.add_node(num_cpus=1, labels={"role": "rollout"}, object_store_memory=128 << 20)

    rollout_nodes = [add(), add()]  # oldest first
    with running(config, tmp_path) as algorithm:
        training = threading.Thread(target=train, args=(algorithm,))
        training.start()
        try:
            for kill in range(KILLS):
                if kill % 2:
                    victim = rollout_nodes.pop()
                    wait_until(lambda node=victim: hosts_an_actor(node), PATIENCE_S)
                else:
                    victim, steps = rollout_nodes.pop(0), algorithm.finished_steps
                    wait_until(
                        lambda node=victim, steps=steps: (
                            algorithm.finished_steps > steps and is_at_work(algorithm, node)
                        ),
                        PATIENCE_S,
                    )
                disturbed.fault()
                nodes.remove_node(victim, allow_graceful=False)
                rollout_nodes.append(add())
            steps = algorithm.finished_steps
            wait_until(lambda: algorithm.finished_steps > steps + 1, PATIENCE_S)
        finally:
            over.set()
            training.join()
        assert algorithm.skipped.skipped == 0
        weights, steps = algorithm.get_policy().state_dict(), algorithm.finished_steps
        disturbed.check("50 kills of nodes with actors, `actors.max_retries` 3", config, weights, steps=steps)
