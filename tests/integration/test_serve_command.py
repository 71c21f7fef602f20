"""``cacovid serve`` as users type it."""

import concurrent.futures
import json
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import pytest
from ray import serve

from benchmarks.load import steady_load
from serving.running import running_service
from tests.support.ports import free_port
from tests.support.serving_command import ServeCommand, command
from tests.support.serving_server import policy_folder, service_config
from tests.support.waiting import PATIENCE_S, get, wait_until
from tests.unit.serving.test_api import messages


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "{tmp}/none.yaml"], "cannot read the config"),
        (["--config", "{tmp}/odd.yaml"], "engine.max_batches"),
        (["--config", "{tmp}/odd.yaml", "--policy", "{tmp}"], "leave out --policy"),
        (["--policy", "a=x", "--policy", "a=y"], "two policies have the id 'a'"),
        (["--host", "0.0.0.0"], "without keys"),
        (["--port", "{port}"], "cannot listen on"),
    ],
)
def test_mistakes_are_one_line(arguments, message, tmp_path):
    (tmp_path / "odd.yaml").write_text("engine: {max_batches: 1}\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        filled = [each.format(tmp=tmp_path, port=taken.getsockname()[1]) for each in arguments]
        done = subprocess.run(command(*filled), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def in_flight(url: str) -> int:
    """Requests that the service holds."""
    return sum(map(float, re.findall(r"^cacovid_in_flight{.*} (\S+)$", get(f"{url}/metrics").text, re.MULTILINE)))


@pytest.mark.slow  # a Ray cluster of its own
def test_the_command_serves_reloads_and_drains(tmp_path):
    port = free_port()
    policy = Path(shutil.copytree(policy_folder(), tmp_path / "policy"))
    url = f"http://127.0.0.1:{port}"
    body = {"model": "mine", "messages": messages()}
    with ServeCommand("--policy", f"mine={policy}", "--port", str(port)) as running:
        assert "mine, embedded" in running.wait_for("model ids")
        before = httpx.post(f"{url}/v1/compress", json=body, timeout=PATIENCE_S).json()["kept"]

        shutil.copytree(policy_folder(3), policy, dirs_exist_ok=True)
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("reloaded")
        assert httpx.post(f"{url}/v1/compress", json=body, timeout=PATIENCE_S).json()["kept"] != before

        (policy / "policy.json").unlink()
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("the service goes on as it was")

        draining = threading.Event()

        def body_in_two_parts() -> Iterator[bytes]:
            content = json.dumps(body).encode()
            yield content[:100]
            draining.wait(PATIENCE_S)
            yield content[100:]

        def ask() -> httpx.Response:
            headers = {"Content-Type": "application/json"}
            return httpx.post(
                f"{url}/v1/chat/completions", content=body_in_two_parts(), headers=headers, timeout=PATIENCE_S
            )

        with concurrent.futures.ThreadPoolExecutor(6) as clients:
            asked = [clients.submit(ask) for _ in range(6)]
            wait_until(lambda: in_flight(url) == 6)
            running.process.send_signal(signal.SIGTERM)
            running.wait_for("draining")
            draining.set()
            statuses = Counter(each.result().status_code for each in asked)
        assert statuses == {200: 6}, "requests under way are finished"
        assert running.process.wait(60) == 0


@pytest.mark.slow  # another replica takes its time to be wanted and to start
def test_engines_are_added_under_load_up_to_their_bound(cluster):
    config = service_config(
        engine={"max_replicas": 2, "target_ongoing": 1.0, "cpus": 0.1},
        media={"max_replicas": 1, "cpus": 0.1},
        api={"max_replicas": 1, "cpus": 0.1, "page": False},
    )
    port = free_port()
    body = {"model": "trained", "messages": messages(), "max_tokens": 4}
    with running_service(config, "127.0.0.1", port):
        assert engine_count() == 1
        with steady_load(f"http://127.0.0.1:{port}", lambda: body, clients=6) as outcomes:
            wait_until(lambda: engine_count() == 2, 200)
            time.sleep(3)  # a third one would come by then
            assert engine_count() == 2
        assert set(outcomes.statuses) == {200}


def engine_count() -> int:
    """Engine replicas that Serve counts as running."""
    engine = serve.status().applications["cacovid"].deployments["engine"]
    return engine.replica_states.get("RUNNING", 0)
