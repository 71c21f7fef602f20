"""The link of a node is cut: a host of its own, in a network namespace, that falls silent with its actor."""

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cluster.training.cpo import CPO
from tests.support.disturbed import Disturbed, running
from tests.support.hosts import host
from tests.support.joined_node import joined_node
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.shows("Cut links")]

CUT_SECONDS = 20.0


@pytest.mark.parametrize("comes_back", [True, False])
def test_cut_link(comes_back: bool, nodes: Cluster, disturbed: Disturbed, small: TrainConfig, tmp_path: Path) -> None:
    """One of two nodes of an actor each; tasks are in its actor's hands, and inputs of the replay buffer on it."""
    steps = 60
    config = with_overrides(small, {"actors.labels": ["role=rollout"], "actors.cpus": 1, "run.steps": steps})

    with ExitStack() as stack:
        there = stack.enter_context(host())
        address = {"node_ip_address": there.address}
        stack.enter_context(joined_node(tmp_path / "far", nodes.address, inside=there.inside, **address))
        stack.enter_context(joined_node(tmp_path / "near", nodes.address))
        algorithm: CPO = stack.enter_context(running(config, tmp_path))
        wait_until(lambda: len(algorithm.pool.handles()) == 2, 200)
        for _ in range(20):
            algorithm.train()
        disturbed.fault()
        there.cut()
        if comes_back:
            mending = threading.Timer(CUT_SECONDS, there.mend)
            mending.start()
            stack.callback(mending.join)
        while algorithm.finished_steps < steps:
            algorithm.train()
        assert algorithm.skipped.skipped == 0
        how = "for 20 s" if comes_back else "for good"
        disturbed.check(f"link of one of 2 rollout nodes cut {how}", config, algorithm.get_policy().state_dict())
