"""Clusters of several nodes on this machine; nothing here touches Ray processes that it did not start."""

import logging
from collections.abc import Iterator

import pytest
import ray
from ray.cluster_utils import Cluster

from tests.integration.conftest import table  # noqa: F401 - a fixture

FAST_NOTICE = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}


@pytest.fixture
def nodes() -> Iterator[Cluster]:
    """A head node with room for learners alone; rollout nodes are added by the test."""
    if ray.is_initialized():
        ray.shutdown()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 4, "object_store_memory": 256 << 20, "_system_config": FAST_NOTICE},
    )
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()
