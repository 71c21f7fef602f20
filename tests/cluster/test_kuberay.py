"""Every command of the Kubernetes manifests, run as written on a machine apart, with the embedded model."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from cacovid.config import TrainConfig
from cacovid.config_files import load_config, to_toml, with_overrides
from tests.integration.conftest import SMALL_RUN
from tests.support.manifests import resource
from tests.support.namespaces import Machine, machine
from tests.support.pods import SECRET, driver_labels, job_status, start_pods, submit
from tests.support.serving_server import policy_folder
from tests.support.waiting import wait_until
from tests.unit.serving.test_api import messages

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.deploy,
    pytest.mark.timeout(1200),
    pytest.mark.shows("Kubernetes: every command of cluster/deploy/kuberay, run as written"),
]

FOLDER = "overlays/embedded-cpu"
JOB_S = 400.0
KEY = "a-key-of-the-test-0123456789"


def tiny(table: Path, folder: Path) -> TrainConfig:
    """The overlay's own config map, with a run of seconds."""
    (folder / "train.toml").write_text(resource(FOLDER, "ConfigMap", "cacovid-train")["data"]["train.toml"])
    shrunk = {**SMALL_RUN, "run.steps": 40, "run.checkpoint_every": 30, "data.train": str(table)}
    config = with_overrides(load_config(folder / "train.toml", []), shrunk)
    (folder / "train.toml").write_text(to_toml(config))
    return config


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Machine]:
    for name in ("work", "config", "keys", "logs"):
        (tmp_path / name).mkdir()
    (tmp_path / "keys" / "keys").write_text(f"{KEY}\n")
    mounts = {f"/mnt/cacovid/{name}": tmp_path / name for name in ("work", "config", "keys")}
    with machine(mounts, SECRET, tmp_path / "logs") as started:
        yield started


def rows(tmp_path: Path) -> list[dict[str, float]]:
    metrics = tmp_path / "work" / "runs" / "train" / "metrics.jsonl"
    return [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []


def test_job_is_saved_before_its_machine_goes_and_goes_on_when_run_again(place, table, tmp_path):
    config = tiny(table, tmp_path / "config")
    job = resource(FOLDER, "RayJob")
    start_pods(place, job, {"learner": 1, "rollout": 2})
    submit(place, job, "first")
    wait_until(lambda: len(rows(tmp_path)) >= 2 or job_status(place, "first") == "FAILED", JOB_S)
    assert job_status(place, "first") == "RUNNING", place.log("first")
    learner = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    hook = place.run(*learner["lifecycle"]["preStop"]["exec"]["command"])
    assert (hook.returncode, hook.stderr) == (0, "")
    wait_until(lambda: job_status(place, "first") == "FAILED")
    assert driver_labels(place, "first")["cacovid/role"] == "learner"
    saved = len(rows(tmp_path))
    assert saved < config.run.steps
    assert (tmp_path / "work" / "runs" / "train" / "checkpoints" / f"step-{saved:06}").is_dir()
    submit(place, job, "second")
    wait_until(lambda: job_status(place, "second") in ("SUCCEEDED", "FAILED"), JOB_S)
    assert job_status(place, "second") == "SUCCEEDED", place.log("second")
    assert [row["step"] for row in rows(tmp_path)] == list(range(config.run.steps))
    assert (tmp_path / "work" / "runs" / "train" / "policy" / "policy.json").is_file()
    assert place.run(*learner["lifecycle"]["preStop"]["exec"]["command"]).returncode == 0  # without a driver


def test_service_answers_on_the_workers_to_those_who_have_a_key(place, tmp_path):
    service = resource(FOLDER, "RayService")
    (tmp_path / "work" / "runs" / "train").mkdir(parents=True)
    (tmp_path / "work" / "runs" / "train" / "policy").symlink_to(policy_folder())
    start_pods(place, service, {"engine": 1})
    (tmp_path / "config" / "serve.yaml").write_text(service["spec"]["serveConfigV2"])
    deployed = place.run("serve", "deploy", "/mnt/cacovid/config/serve.yaml", "--address", "http://127.0.0.1:8265")
    assert deployed.returncode == 0, deployed.stderr[-2000:]
    engine = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    probe = engine["readinessProbe"]["httpGet"]
    url = f"http://127.0.0.1:{probe['port']}"
    curl = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]
    wait_until(lambda: place.run(*curl, f"{url}{probe['path']}").stdout == "200", JOB_S)
    models = [*curl, f"{url}/v1/models"]
    wait_until(lambda: place.run(*models).stdout == "401", JOB_S)
    (policy,) = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["deployments"][0]["user_config"][
        "policies"
    ]
    (tmp_path / "config" / "body").write_text(json.dumps({"model": policy, "messages": messages(), "max_tokens": 4}))
    ask = [*curl, "--header", f"Authorization: Bearer {KEY}", "--header", "Content-Type: application/json"]
    ask += ["--data", "@/mnt/cacovid/config/body", f"{url}/v1/chat/completions"]
    wait_until(lambda: place.run(*ask).stdout == "200", JOB_S)
