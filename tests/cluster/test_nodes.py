"""Nodes that go while a run is under way: nothing is lost, nobody is blamed, the policy is the same."""

from pathlib import Path

import pytest
import torch
from ray.cluster_utils import Cluster

from cluster.training.cpo import CPO, CPOConfig
from tests.integration.conftest import SMALL_RUN
from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster


def build(table: Path, folder: Path, actors: int, learners: int) -> CPO:
    """Rollout actors run where a node offers ``rollout``; no learner keeps a record that it has fetched."""
    overrides = {**SMALL_RUN, "data.train": str(table), "actors.cpus": 0, "learners.record_cache_bytes": 0}
    config = CPOConfig().training(overrides=overrides, run_dir=str(folder)).learners(num_learners=learners)
    config = config.env_runners(num_env_runners=actors, custom_resources_per_env_runner={"rollout": 1})
    algorithm: CPO = config.build_algo()
    return algorithm


@pytest.fixture
def undisturbed(table: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    algorithm = build(table, tmp_path / "undisturbed", 0, 0)
    try:
        for _ in range(SMALL_RUN["run.steps"]):
            algorithm.train()
        return algorithm.get_policy().state_dict()
    finally:
        algorithm.stop()


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def test_node_lost_with_its_actors_and_inputs(
    nodes: Cluster, table: Path, undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """The replay buffer's inputs lie on the node: the next one's actors encode again what updates draw."""
    first = nodes.add_node(num_cpus=0, resources={"rollout": 2}, object_store_memory=256 << 20)
    algorithm = build(table, tmp_path / "run", actors=2, learners=1)
    try:
        algorithm.train()
        algorithm.train()
        nodes.remove_node(first, allow_graceful=False)
        nodes.add_node(num_cpus=0, resources={"rollout": 2}, object_store_memory=256 << 20)
        rows = [algorithm.train()["cpo"] for _ in range(2)]
        wait_until(lambda: len(algorithm.pool.handles()) == 2)
        assert rows[-1]["lost_actors"] == 2
        assert rows[-1]["skipped"] == 0
        assert largest_difference(algorithm.get_policy().state_dict(), undisturbed) <= 1e-6
    finally:
        algorithm.stop()
