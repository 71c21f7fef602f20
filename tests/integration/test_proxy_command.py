"""``cacovid proxy`` as users type it, in front of a server that speaks vLLM's protocol."""

import subprocess

import httpx2 as httpx
import pytest
import yaml

from tests.support.ports import free_port
from tests.support.serving_command import ServeCommand, command
from tests.support.serving_engine import tiny_folder
from tests.support.serving_server import BASE, POLICY, embedded_llm, policy_folder, running, service_config
from tests.support.upstream_server import upstream_server
from tests.support.waiting import PATIENCE_S, get, wait_until
from tests.unit.serving.test_api import messages

URL = "http://127.0.0.1:1"


def choices(url: str, body: dict) -> list[dict]:
    return httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_S).json()["choices"]


def proxy(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments, name="proxy"), capture_output=True, text=True, timeout=240, check=False)


def test_the_configuration_is_that_of_serve_with_the_server_in_it(tmp_path):
    (tmp_path / "service.yaml").write_text("engine: {max_tokens: 200, upstream: {connect_timeout_s: 1.5}}\n")
    arguments = ("--config", str(tmp_path / "service.yaml"), "--upstream", URL, "--upstream-model", "m")
    shown = proxy(*arguments, "--show-config")
    engine = yaml.safe_load(shown.stdout)["engine"]
    assert (engine["kind"], engine["max_tokens"]) == ("upstream", 200)
    assert engine["upstream"] == {"url": URL, "model": "m", "key_file": None, "connect_timeout_s": 1.5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--upstream", "localhost:8001"], "no address of a server"),
        (["--upstream", URL, "--model", "{qwen3}"], "vLLM plugin"),
        (["--upstream", URL, "--upstream-key", "/nowhere/key"], "cannot read the key file"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    done = proxy(*(each.format(qwen3=tiny_folder("qwen3_vl")) for each in arguments))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow  # a Ray cluster of its own
def test_answers_come_from_the_server_and_are_this_services_own():
    port, policy = free_port(), policy_folder()
    wish = {"compression": {"retention": 0.25, "positions": "contiguous"}}
    body = {"model": POLICY, "messages": messages(), "max_tokens": 6} | wish
    with running(service_config(), keys=()) as ours:
        expected = choices(ours.url, body)
    with upstream_server(embedded_llm()) as upstream:
        arguments = ("--upstream", upstream.url, "--policy", f"{POLICY}={policy}", "--port", str(port))
        with ServeCommand(*arguments, name="proxy") as served:
            assert BASE in served.wait_for("model ids", 300)
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: get(f"{url}/readyz").status_code == 200)
            assert choices(url, body) == expected
            assert len(upstream.asked) == 1
            assert served.end() == 0
