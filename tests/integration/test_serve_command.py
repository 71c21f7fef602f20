"""``cacovid serve`` as users type it."""

import concurrent.futures
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import httpx2 as httpx
import pytest
from ray import serve

from cluster.load import steady_load
from cluster.service import running_service
from tests.serving_server import policy_folder, service_config
from tests.unit.test_serving_api import messages


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "cluster.main", "serve", *arguments]


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
        done = subprocess.run(command(*filled), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


class Running:
    """The command in a process of its own, its lines as they come."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)

    def wait_for(self, text: str, seconds: float = 120) -> str:
        seen = []
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self.lines.get(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line with {text!r} in:\n{''.join(seen)}") from None
            seen.append(line)
            if text in line:
                return line


def in_flight(url: str) -> int:
    """Requests that the service holds."""
    return sum(map(float, re.findall(r"^cacovid_in_flight{.*} (\S+)$", httpx.get(f"{url}/metrics").text, re.MULTILINE)))


@pytest.mark.slow  # a Ray cluster of its own
def test_the_command_serves_reloads_and_drains(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    policy = Path(shutil.copytree(policy_folder(), tmp_path / "policy"))
    running = Running("--policy", f"mine={policy}", "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    body = {"model": "mine", "messages": messages()}
    try:
        assert "mine, embedded" in running.wait_for("model ids")
        before = httpx.post(f"{url}/v1/compress", json=body, timeout=60).json()["kept"]

        shutil.copytree(policy_folder(3), policy, dirs_exist_ok=True)
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("reloaded")
        assert httpx.post(f"{url}/v1/compress", json=body, timeout=60).json()["kept"] != before

        (policy / "policy.json").unlink()
        running.process.send_signal(signal.SIGHUP)
        running.wait_for("the service goes on as it was")

        long = body | {"media_io_kwargs": {"video": {"num_frames": 64}}, "compression": {"retention": 1.0}}
        with concurrent.futures.ThreadPoolExecutor(6) as clients:
            asked = [clients.submit(httpx.post, f"{url}/v1/chat/completions", json=long, timeout=60) for _ in range(6)]
            while in_flight(url) < 6:
                assert not any(each.done() for each in asked), "answered too soon to be under way"
            running.process.send_signal(signal.SIGTERM)
            running.wait_for("draining")
            statuses = Counter(each.result().status_code for each in asked)
        assert statuses == {200: 6}, "requests under way are finished"
        assert running.process.wait(60) == 0
    finally:
        if running.process.poll() is None:
            os.killpg(running.process.pid, signal.SIGKILL)


@pytest.mark.slow  # another replica takes its time to be wanted and to start
def test_engines_are_added_under_load_up_to_their_bound(cluster):
    config = service_config(
        engine={"max_replicas": 2, "target_ongoing": 1.0, "cpus": 0.1},
        media={"max_replicas": 1, "cpus": 0.1},
        api={"max_replicas": 1, "cpus": 0.1, "page": False},
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    body = {"model": "trained", "messages": messages(), "max_tokens": 4}
    with running_service(config, "127.0.0.1", port):
        assert engine_count() == 1
        with steady_load(f"http://127.0.0.1:{port}", lambda: body, clients=6) as outcomes:
            deadline = time.monotonic() + 120
            while engine_count() < 2 and time.monotonic() < deadline:
                time.sleep(0.5)
            time.sleep(3)
            assert engine_count() == 2
        assert set(outcomes.statuses) == {200}


def engine_count() -> int:
    """Engine replicas that Serve counts as running."""
    engine = serve.status().applications["cacovid"].deployments["engine"]
    return engine.replica_states.get("RUNNING", 0)
