"""`vm.yaml` as `ray up` reads it, and beside the Kubernetes manifests, whose groups it offers."""

import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from cacovid.config_files import load_config
from tests.support.manifests import DEPLOY

ROOT = DEPLOY.parents[1]


@pytest.fixture
def declared():
    return yaml.safe_load((DEPLOY / "vm.yaml").read_text())


@pytest.fixture
def prepared(declared):
    """With the provider's defaults, as `ray up` starts from it."""
    return prepare_config(declared)


def test_ray_takes_it(prepared):
    validate_config(prepared)


def test_ray_refuses_a_misspelt_field(prepared):
    prepared["available_node_types"]["rollout"]["min_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        validate_config(prepared)


def test_rollouts_are_spot_machines_that_come_with_the_work(prepared):
    types = prepared["available_node_types"]
    assert types["rollout"]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["rollout"]["min_workers"] == 0 < types["rollout"]["max_workers"]
    assert "InstanceMarketOptions" not in {**types["learner"]["node_config"], **types["head"]["node_config"]}
    assert prepared["max_workers"] == sum(each["max_workers"] for each in types.values())


def test_the_configuration_of_kubernetes_fits_these_machines_too(prepared):
    config = load_config(DEPLOY / "kuberay" / "base" / "cluster" / "train.toml", [])
    types = prepared["available_node_types"]
    labels = dict(label.split("=") for label in config.actors.labels)
    assert [name for name, each in types.items() if labels.items() <= each["labels"].items()] == ["rollout"]
    assert [name for name, each in types.items() if each["resources"]["CPU"] >= config.learners.cpus] == ["learner"]
    assert [name for name, each in types.items() if "driver" in each["resources"]] == ["learner"]
    assert types["head"]["resources"] == {"CPU": 0}
    assert types["rollout"]["resources"]["CPU"] >= config.actors.cpus
    assert types["rollout"]["resources"]["GPU"] >= config.actors.gpus
    assert Path(config.data.train).is_relative_to("/mnt/cacovid/work")


def test_every_node_asks_for_the_token_and_no_port_is_opened(declared):
    assert declared["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        (start,) = [each for each in declared[commands] if " ray start " in each]
        assert "RAY_AUTH_MODE=token" in start
        assert "--dashboard-host" not in start  # loopback; `ray dashboard` comes by ssh
    assert "security_group" not in declared["provider"]


def test_a_stopped_job_may_save_before_ray_kills_it(declared):
    config = load_config(DEPLOY / "kuberay" / "base" / "cluster" / "train.toml", [])
    (start,) = [each for each in declared["worker_start_ray_commands"] if " ray start " in each]
    (seconds,) = re.findall(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", start)
    assert float(seconds) >= config.run.stop_grace_s + 30  # a checkpoint


def test_what_is_installed_is_pinned_and_what_is_sent_is_there(declared):
    assert (ROOT / "constraints.txt").is_file()
    installs = [each for each in declared["setup_commands"] if "pip install --python" in each]
    assert installs
    assert all("--constraint constraints.txt" in each for each in installs)
    assert declared["file_mounts"]["/home/ubuntu/cacovid"] == "."
    assert declared["rsync_exclude"] == [".git", ".venv", ".venv-vllm", "runs"]
