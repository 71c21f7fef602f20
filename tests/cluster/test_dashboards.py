"""Every query of the Grafana dashboards is answered by a real Prometheus that watches a real run and service."""

import json
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest

from cacovid.config import TrainConfig
from cacovid.config_files import to_toml, with_overrides
from tests.support.disturbed import cacovid_train
from tests.support.head_node import head_node
from tests.support.ports import free_port
from tests.support.prometheus import GRAFANA, SHIPPED, Query, prometheus, queries, samples
from tests.support.serving_command import ServeCommand
from tests.support.serving_server import policy_folder
from tests.support.waiting import PATIENCE_S, wait_until
from tests.unit.serving.test_api import messages

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.shows("Every query of the dashboards, answered by Prometheus"),
]

NO_GPU = "there is no GPU"
WITHOUT_DATA = {  # panels, and why
    "GPU memory of actors and learner": NO_GPU,
    "GPUs": NO_GPU,
    "GPU memory": NO_GPU,
}
ANSWER_S = 90.0


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool here: apt-get install prometheus")
def test_queries_and_the_shipped_configuration_are_well_formed(tmp_path: Path) -> None:
    rules = [{"record": f"q{number}", "expr": each.filled(".+")} for number, each in enumerate(queries())]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "dashboards", "rules": rules}]}))
    for kind, path in (("rules", tmp_path / "rules.json"), ("config", SHIPPED)):
        done = subprocess.run(["promtool", "check", kind, str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def clients(url: str) -> Iterator[None]:
    """Somebody asks the service all the while, now and then for what it has not."""
    left = threading.Event()
    body = {"model": "cacovid", "messages": messages()}

    def ask() -> None:
        while not left.wait(0.2):
            for path, model in (("chat/completions", "cacovid"), ("compress", "cacovid"), ("compress", "unknown")):
                httpx.post(f"{url}/v1/{path}", json=body | {"model": model}, timeout=PATIENCE_S)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join(PATIENCE_S)


@contextmanager
def training(address: str, config: TrainConfig, folder: Path) -> Iterator[Path]:
    """A run's folder; it is ended with SIGTERM."""
    (folder / "train.toml").write_text(to_toml(config))
    run = folder / "watched"
    process = cacovid_train(address, "--config", str(folder / "train.toml"), "--out", str(run))
    try:
        yield run
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)


def kill(head: psutil.Process, name: str) -> None:
    """``kill -9`` of one of Ray's processes of this name."""
    next(each for each in head.children(recursive=True) if name in " ".join(each.cmdline())).kill()


def steps(run: Path) -> int:
    metrics = run / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def unanswered(url: str, left: list[Query]) -> list[Query]:
    return [each for each in left if not samples(url, each.filled("watched"))]


def test_every_query_is_answered(small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    config = with_overrides(small, {"run.steps": 2_000, "run.checkpoint_every": 5, "learners.cpus": 0.5})
    port, often = free_port(), json.dumps({"metrics_report_interval_ms": 1_000})
    options = {"dashboard_port": free_port(), "metrics_export_port": free_port(), "system_config": often}
    with head_node(tmp_path, {}, **options) as (head, address):
        session = next(each.partition("=")[2] for each in head.cmdline() if each.startswith("--temp-dir="))
        discovery = Path(session) / "prom_metrics_service_discovery.json"
        serving = ("--address", address, "--port", str(port), "--policy", policy_folder())
        with (
            prometheus(tmp_path, discovery, f"127.0.0.1:{port}") as url,
            ServeCommand(*serving) as service,
            training(address, config, tmp_path) as run,
        ):
            service.wait_for("model ids")
            wait_until(lambda: steps(run) >= 3, 120)
            kill(head, "ray::RolloutEnvRunner")
            time.sleep(2)
            kill(head, "ray::_LearnerActor")
            with clients(f"http://127.0.0.1:{port}"):
                left = [each for each in queries() if each.panel not in WITHOUT_DATA]
                deadline = time.monotonic() + ANSWER_S
                while left and time.monotonic() < deadline:
                    time.sleep(1)
                    left = unanswered(url, left)
                assert not left
            reasons = samples(url, "ray_cacovid_actor_deaths_total")
            assert [each["metric"]["reason"] for each in reasons] == ["killed"]
            assert {each.panel for each in unanswered(url, queries())} <= WITHOUT_DATA.keys()
    log = (run / "logs" / "attempt-1.log").read_text()
    assert re.search(r"WARNING actors\.places: rollout actor \d was lost on node \w+ \(killed\):", log)
    assert re.search(r"WARNING cluster\.training\.run: a learner died .*kill -9", log)


def test_what_has_no_data_here_is_a_panel_that_says_so() -> None:
    panels = [each for path in GRAFANA.glob("*.json") for each in json.loads(path.read_text())["panels"]]
    assert {each["title"] for each in panels if each["description"].startswith("Needs a GPU.")} == WITHOUT_DATA.keys()
