"""The table of docs/security.md: hostile requests, each refused as it should be, and the service lives on."""

import json
import re
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.support.hostile_requests import HOSTILE, ODD, Setting, chat, guarded, hostile_setting
from tests.support.serving_server import KEY, running
from tests.support.waiting import PATIENCE_S, wait_until

SECURITY = Path(__file__).parents[3] / "docs" / "security.md"


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    with hostile_setting(tmp_path_factory) as made:
        yield made


@pytest.fixture(scope="module")
def service(setting):
    with running(guarded(setting)) as running_service:
        yield running_service


def send(service, body, path: str = "/v1/chat/completions", method: str = "POST") -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} | ({} if method == "ANON" else {"Authorization": f"Bearer {KEY}"})
    return httpx.request(
        "POST" if method == "ANON" else method, service.url + path, content=content, headers=headers, timeout=PATIENCE_S
    )


def says_nothing(answer: httpx.Response, setting: Setting) -> bool:
    """No path, address, traceback or key of ours in what the client reads."""
    secrets = (str(setting.root), str(setting.outside), "/tmp", "/proc", "127.0.0", "Traceback", "0x7f", KEY, ".py")
    return not any(secret in answer.text for secret in secrets)


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case.name.replace(" ", "-"))
def test_hostile(case, service, setting):
    answer = send(service, case.body(setting), case.path, case.method)
    assert (answer.status_code, answer.json()["error"]["code"]) == (case.status, case.code), answer.text
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert says_nothing(answer, setting), answer.text
    assert len(answer.text) < 1000


@pytest.mark.parametrize("name", ODD)
def test_odd_but_harmless(name, service):
    assert send(service, ODD[name]).status_code == 200


def test_the_service_answers_after_all_of_it(service):
    """Runs last in this file: nothing above has used up processes, memory or the queue."""
    assert send(service, chat()).status_code == 200
    in_flight = service.telemetry.registry.get_sample_value
    wait_until(lambda: in_flight("cacovid_in_flight", {"replica": "test"}) == 0)  # counted after the last byte went out


def test_a_body_without_a_length_is_bounded_too(service):
    def endless():
        for _ in range(64):
            yield b"x" * (1 << 20)

    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    with httpx.Client(timeout=PATIENCE_S) as client:
        try:
            answer = client.post(f"{service.url}/v1/chat/completions", content=endless(), headers=headers)
        except (httpx.WriteError, httpx.ReadError):
            return  # cut off while it still sent
    assert answer.status_code == 413


def test_the_table_in_the_security_document_names_every_hostile_request():
    text = SECURITY.read_text(encoding="utf-8")
    missing = [case.name for case in HOSTILE if f"`{case.name}`" not in text]
    assert not missing
    assert len({case.name for case in HOSTILE}) == len(HOSTILE) >= 40


def test_every_test_that_the_security_document_names_is_there():
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parents[2].rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", SECURITY.read_text(encoding="utf-8")))
    assert named
    assert not [name for name in named if f"def {name}(" not in tests]
