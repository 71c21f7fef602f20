"""Ray's own autoscaler, with nodes of its fake provider here: demand brings them, idleness sends them away."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cacovid.config import TrainConfig
from cacovid.config_files import to_toml, with_overrides
from cacovid.policy.base import CompressionPolicy
from cluster.training.run_directory import RunDirectory
from tests.cluster.conftest import STEPS
from tests.support.disturbed import Disturbed, cacovid_train
from tests.support.head_node import WITHOUT_TOKEN, head_node
from tests.support.ports import free_port
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.shows("Ray's autoscaler")]

HEAD_ID = f"{'f' * 51}00000"  # what the fake provider calls the head
ENVIRONMENT = {
    **WITHOUT_TOKEN,
    "RAY_FAKE_CLUSTER": "1",
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
}
MOST = 3
WATCH = """
import sys, time
from ray._raylet import GcsClient
gcs = GcsClient(address=sys.argv[1])
while True:
    print(sum(node.state == 0 for node in gcs.get_all_node_info().values()) - 1, flush=True)
    time.sleep(0.5)
"""  # a process of its own: this one belongs to another cluster
RUN_S = 300.0
IDLE_S = 120.0


def autoscaling(port: int) -> dict[str, object]:
    """Room for the learner and the driver at the head, rollout nodes of one CPU as they are asked for."""
    commands = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
    rollout = {"resources": {"CPU": 1, "object_store_memory": 128 << 20}, "labels": {"role": "rollout"}}
    return {
        **{f"{name}_commands": [] for name in commands},
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
        "upscaling_speed": 1.0,
        "cluster_name": "test",
        "max_workers": MOST,
        "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external",  # "fake_multinode" wants an example that Ray's wheel lacks
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
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
    options = {"port": port, "include_dashboard": False}
    with head_node(tmp_path, ENVIRONMENT, autoscaling_config=config_file, **options) as (_, address):
        counts = tmp_path / "counts"
        with counts.open("w") as file:
            watch = subprocess.Popen([sys.executable, "-c", WATCH, address], stdout=file)

        def workers() -> list[str]:
            return counts.read_text().split()

        try:
            wait_until(workers)
            run = cacovid_train(address, "--config", str(run_config), "--out", str(tmp_path / "run"))
            wait_until(lambda: run.poll() is not None, RUN_S)
            assert run.returncode == 0
            assert max(map(int, workers())) == MOST
            wait_until(lambda: workers()[-1] == "0", IDLE_S)
        finally:
            watch.kill()
            watch.wait()
    directory = RunDirectory(tmp_path / "run")
    disturbed.read(directory, config)
    disturbed.note(STEPS)
    weights = CompressionPolicy.from_pretrained(directory.policy).state_dict()
    disturbed.check(f"Ray's autoscaler: no rollout node, {MOST} by demand, none again when idle", config, weights)
