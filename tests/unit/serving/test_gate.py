"""What every request passes before any route sees it: keys, names, ids, bounds, and the log line."""

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx2 as httpx
import pytest

from cacovid.errors import UserError
from serving.api.gate import Admission, Gate
from serving.api.keys import Keys
from serving.api.telemetry import Telemetry
from serving.config import ApiConfig
from tests.support.serving_server import KEY, POLICY, Running, running, service_config, write_keys
from tests.support.waiting import PATIENCE_S, get, wait_until
from tests.unit.serving.test_api import ask, messages, post


@pytest.mark.parametrize("key", ["", "wrong", KEY[:-1], KEY + "x", KEY.upper()])
def test_a_wrong_key_is_unauthorised(service, key):
    for path, method in [("/v1/models", "GET"), ("/metrics", "GET"), ("/v1/chat/completions", "POST")]:
        head = {"Authorization": f"Bearer {key}".strip()}
        content = b"{}" if method == "POST" else None
        answer = httpx.request(method, service.url + path, headers=head, content=content, timeout=PATIENCE_S)
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "authentication_error"
        assert answer.headers["www-authenticate"] == "Bearer"


def test_any_key_of_the_file_is_taken(tmp_path):
    keys = Keys.read(write_keys(tmp_path, "first-key-0123456789", "second-key-0123456789"))
    keys.check("Bearer second-key-0123456789")
    keys.check("bearer first-key-0123456789")
    assert "second-key" not in repr(vars(keys))


@pytest.mark.parametrize("content", ["", "# only a comment\n", "short\n"])
def test_a_key_file_without_good_keys_is_refused(tmp_path, content):
    (tmp_path / "keys.txt").write_text(content)
    with pytest.raises(UserError, match="key file"):
        Keys.read(str(tmp_path / "keys.txt"))


def test_request_ids_go_through_and_strange_ones_do_not(service):
    assert get(f"{service.url}/healthz", headers={"X-Request-Id": "my-id.7"}).headers["x-request-id"] == "my-id.7"
    odd = get(f"{service.url}/healthz", headers={"X-Request-Id": "a b; injected"}).headers["x-request-id"]
    assert len(odd) == 24


def test_logs_hold_ids_and_counts_but_no_key_question_or_video(service, client, caplog):
    with caplog.at_level(logging.INFO, logger="cacovid.serving.api"):
        ask(client, extra_headers={"X-Request-Id": "find-me"})
        wait_until(lambda: "find-me" in caplog.text)  # it is written after the last byte went out
    lines = [record.getMessage() for record in caplog.records if "find-me" in record.getMessage()]
    fields = json.loads(lines[0])
    assert (fields["request"], fields["status"], fields["route"]) == ("find-me", 200, "/v1/chat/completions")
    assert (fields["model"], fields["video_tokens"], fields["kept"]) == (POLICY, 288, 72)
    everything = "\n".join(record.getMessage() for record in caplog.records)
    assert KEY not in everything
    assert "what" not in everything
    assert "base64" not in everything


def test_an_unexpected_fault_is_an_error_without_details(service, monkeypatch):
    async def broken(*args):
        raise RuntimeError("/secret/path at 0x7f")

    monkeypatch.setattr(service.backend, "answer", broken)
    answer = post(
        service, "/v1/chat/completions", {"model": POLICY, "messages": messages()}, **{"X-Request-Id": "fault"}
    )
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "internal error; request id fault"
    assert "secret" not in answer.text
    assert answer.headers["x-request-id"] == "fault"
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@contextmanager
def unfinished(service: Running, begun: bytes) -> Iterator[None]:
    """Inside the block the service holds a request of which it has ``begun`` and waits for the rest."""
    finish = threading.Event()

    def body() -> Iterator[bytes]:
        yield begun
        finish.wait(PATIENCE_S)
        yield b"}"

    with httpx.Client(timeout=PATIENCE_S) as client:
        request = client.build_request("POST", f"{service.url}/v1/chat/completions", content=body())
        request.headers |= {"Authorization": f"Bearer {KEY}"}
        thread = threading.Thread(target=lambda: client.send(request), daemon=True)
        thread.start()
        wait_until(lambda: service.admission.held_bytes == len(begun))
        try:
            yield
        finally:
            finish.set()
            thread.join()


def test_a_full_service_answers_503_with_retry_after():
    with running(service_config(api={"max_in_flight": 1, "retry_after_s": 9})) as service, unfinished(service, b"{"):
        answer = post(service, "/v1/chat/completions", {})
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "9")
        assert answer.json()["error"]["type"] == "overloaded_error"
        assert get(f"{service.url}/healthz").status_code == 200


def test_the_bodies_of_all_requests_together_are_bounded():
    body = {"model": POLICY, "messages": [{"role": "user", "content": "what? " + "a" * 3000}]}
    config = service_config(api={"max_body_bytes": 5000, "max_held_bytes": 6000, "retry_after_s": 9})
    with running(config) as service:
        with unfinished(service, b"{" + b" " * 4000):
            answer = post(service, "/v1/chat/completions", body)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "9")
            assert answer.json()["error"]["code"] == "overloaded"
        wait_until(lambda: service.admission.held_bytes == 0)
        assert post(service, "/v1/chat/completions", body).status_code == 200


def through_gate(app) -> tuple[list[dict], Telemetry]:
    """What a bare Gate in front of ``app`` sends for one request, and what it counts."""
    sent: list[dict] = []
    telemetry = Telemetry("test")

    async def send(message: dict) -> None:
        sent.append(message)

    async def receive() -> dict:
        return {"type": "http.request", "body": b"{}"}

    gate = Gate(app, ApiConfig(hosts=("*",)), Keys(()), telemetry, Admission())
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    with suppress(asyncio.CancelledError, RuntimeError):
        asyncio.run(gate(scope, receive, send))
    return sent, telemetry


def counted(telemetry: Telemetry, status: int) -> float | None:
    labels = {"replica": "test", "route": "/v1/chat/completions", "status": str(status)}
    return telemetry.registry.get_sample_value("cacovid_requests_total", labels)


def test_a_client_that_leaves_is_no_fault_of_the_service():
    async def left(scope, receive, send):
        raise asyncio.CancelledError

    sent, telemetry = through_gate(left)
    assert not sent
    assert (counted(telemetry, 499), counted(telemetry, 500)) == (1, None)


def test_a_fault_in_the_middle_of_an_answer_cuts_it():
    async def broken(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise RuntimeError("in the middle")

    sent, telemetry = through_gate(broken)
    assert [message["type"] for message in sent] == ["http.response.start"]
    assert telemetry.registry.get_sample_value("cacovid_errors_total", {"replica": "test", "code": "internal_error"})


def test_a_service_without_keys_answers_to_its_own_names_only():
    """A page of evil.test, pointed at this machine by its name server, gets nothing."""
    with running(service_config(), keys=()) as service:
        assert get(f"{service.url}/v1/models").status_code == 200
        assert get(f"http://localhost:{service.port}/v1/models").status_code == 200
        for host in ("evil.test", f"evil.test:{service.port}", "127.0.0.1.evil.test", "localhost.evil.test", ""):
            answer = get(f"{service.url}/v1/models", headers={"Host": host})
            assert answer.status_code in (400, 421), host


def test_a_service_with_keys_answers_to_every_name(service):
    headers = {"Host": "videos.example.org", "Authorization": f"Bearer {KEY}"}
    assert get(f"{service.url}/v1/models", headers=headers).status_code == 200
