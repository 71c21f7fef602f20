"""Ray's own autoscaler, with nodes of its fake provider here: demand brings them, idleness sends them away."""

import json
from pathlib import Path

import pytest
from ray._raylet import GcsClient

from cacovid.config import TrainConfig
from cacovid.config_files import to_toml, with_overrides
from cacovid.policy.base import CompressionPolicy
from cluster.training.run_directory import RunDirectory
from tests.cluster.conftest import STEPS
from tests.support.disturbed import Disturbed, cacovid_train
from tests.support.head_node import head_node
from tests.support.ports import free_port
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.shows("Ray's autoscaler")]

HEAD_ID = f"{'f' * 51}00000"  # what the fake provider calls the head
ENVIRONMENT = {
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
}
MOST = 3
RUN_S = 300.0
IDLE_S = 120.0


def autoscaling(port: int) -> dict[str, object]:
    """Room for the learner and the driver at the head, rollout nodes of one CPU as they are asked for."""
    rollout = {"resources": {"CPU": 1, "object_store_memory": 128 << 20}, "labels": {"role": "rollout"}}
    return {
        "cluster_name": "test",
        "max_workers": MOST,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"127.0.0.1:{port}",
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
        },
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 4}, "node_config": {}, "max_workers": 0},
            "rollout": {**rollout, "node_config": {}, "min_workers": 0, "max_workers": MOST},
        },
    }


def test_nodes_come_with_the_queue_and_go_when_they_are_idle(
    small: TrainConfig, disturbed: Disturbed, tmp_path: Path
) -> None:
    """Nothing but the pool's pending placement groups asks for them."""
    port = free_port()
    config_file, run_config = tmp_path / "autoscaling.json", tmp_path / "run.toml"
    config_file.write_text(json.dumps(autoscaling(port)))
    elastic = {"actors.cpus": 1, "actors.count": 0, "actors.max": MOST, "actors.idle_s": 1.0}
    config = with_overrides(small, {**elastic, "actors.labels": ["role=rollout"]})
    run_config.write_text(to_toml(config))
    with head_node(tmp_path, ENVIRONMENT, port=port, autoscaling_config=config_file) as (_, address):
        gcs = GcsClient(address=address)

        def workers() -> int:
            return sum(node.state == 0 for node in gcs.get_all_node_info().values()) - 1

        assert workers() == 0
        arguments = ("--config", str(run_config), "--out", str(tmp_path / "run"))
        run = cacovid_train(address, *arguments)
        most = 0

        def finished() -> bool:
            nonlocal most
            most = max(most, workers())
            return run.poll() is not None

        disturbed.fault()
        wait_until(finished, RUN_S)
        assert run.returncode == 0
        assert most == MOST
        wait_until(lambda: workers() == 0, IDLE_S)
    directory = RunDirectory(tmp_path / "run")
    disturbed.read(directory, config)
    disturbed.note(STEPS)
    weights = CompressionPolicy.from_pretrained(directory.policy).state_dict()
    disturbed.check(f"Ray's autoscaler: no rollout node, {MOST} by demand, none again when idle", config, weights)
