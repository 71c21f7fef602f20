"""The service on Ray Serve: one application for the whole file, asked as clients ask."""

import concurrent.futures
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import openai
import psutil
import pytest
import ray

from cacovid.compressor import Compressor
from cacovid.errors import UserError
from serving.config import ServiceConfig
from serving.running import deploy, running_service
from tests.support.ports import free_port
from tests.support.processes import processes, templates
from tests.support.serving_server import BASE, KEY, POLICY, policy_folder, service_config, write_keys
from tests.support.serving_videos import clip_bytes, data_url
from tests.support.waiting import get, wait_until
from tests.unit.serving.test_api import messages, question_about

PATIENCE_S = 150.0  # longer than api.request_timeout_s: the service itself says what became of a request
FIXED = {"model": POLICY, "messages": messages(), "max_tokens": 4, "compression": {"retention": 0.25}}


@dataclass
class Service:
    """A deployed application."""

    url: str
    config: ServiceConfig

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE_S)

    def post(self, body: object, path: str = "/v1/chat/completions", key: str = KEY) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"}
        return httpx.post(f"{self.url}{path}", json=body, headers=headers, timeout=PATIENCE_S)


@pytest.fixture(scope="module")
def service(cluster, tmp_path_factory) -> Iterator[Service]:
    port = free_port()
    config = service_config(
        engine={"ongoing": 2, "waiting": 2, "cpus": 0.1, "max_replicas": 1},
        media={"cpus": 0.1, "max_replicas": 1, "concurrent_jobs": 1, "waiting_jobs": 2, "chunk_frames": 24},
        api={
            "keys_file": write_keys(tmp_path_factory.mktemp("keys"), KEY),
            "cpus": 0.1,
            "samples": 1,
            "min_replicas": 2,
            "max_replicas": 2,
            "retry_after_s": 3,
        },
    )
    with running_service(config, "127.0.0.1", port):
        yield Service(f"http://127.0.0.1:{port}", config)


def engines() -> list[psutil.Process]:
    """Engine replicas of this test session."""
    return processes("ServeReplica:cacovid:engine")


class Load:
    """Requests one after the other from a few threads until the block ends; what became of each."""

    def __init__(self, service: Service, threads: int = 2, **changes: object) -> None:
        self._service = service
        self._body = FIXED | changes
        self._stop = threading.Event()
        self._pool = concurrent.futures.ThreadPoolExecutor(threads)
        self._threads = threads
        self.statuses: Counter[int] = Counter()
        self.answers: Counter[str] = Counter()
        self.bodies: list[str] = []

    def __enter__(self) -> "Load":
        self._running = [self._pool.submit(self._work) for _ in range(self._threads)]
        return self

    def __exit__(self, *caught: object) -> None:
        self._stop.set()
        for running in self._running:
            running.result(timeout=PATIENCE_S)

    def _work(self) -> None:
        while not self._stop.is_set():
            answer = self._service.post(self._body)
            self.statuses[answer.status_code] += 1
            if answer.status_code == 200:
                self.answers[answer.json()["choices"][0]["message"]["content"]] += 1
            else:
                self.bodies.append(answer.text)


def test_the_answer_through_serve_is_the_librarys(service, tmp_path):
    text, _ = question_about()
    (tmp_path / "clip.mp4").write_bytes(clip_bytes())
    clip = Compressor.from_pretrained(policy_folder(), "embedded")(tmp_path / "clip.mp4", text, retention=0.25)
    completion = service.client().chat.completions.create(
        model=POLICY, messages=messages(text), extra_body={"compression": {"retention": 0.25}}
    )
    assert completion.choices[0].message.content == clip.answer(max_new_tokens=8)
    assert completion.usage.video_tokens_kept == len(clip.kept)
    assert service.post(FIXED, "/v1/compress").status_code == 422  # max_tokens is no field there
    body = {name: FIXED[name] for name in ("model", "messages", "compression")}
    assert service.post(body, "/v1/compress").json()["kept"] == clip.kept.tolist()


def test_a_long_video_through_serve_is_read_in_chunks_with_the_same_answer(service, tmp_path):
    text, _ = question_about()
    (tmp_path / "clip.mp4").write_bytes(clip_bytes())
    compressor = Compressor.from_pretrained(policy_folder(), "embedded")
    clip = compressor(tmp_path / "clip.mp4", text, retention=0.05, num_frames=60)
    body = {
        "model": POLICY,
        "messages": messages(text),
        "compression": {"retention": 0.05},
        "media_io_kwargs": {"video": {"num_frames": 60}},
    }
    assert service.post(body, "/v1/compress").json()["kept"] == clip.kept.tolist()
    answer = service.post(body | {"max_tokens": 8}).json()
    assert answer["choices"][0]["message"]["content"] == clip.answer(max_new_tokens=8)
    assert answer["usage"]["video_tokens"] == 60 * 36
    refused = service.post(body | {"model": BASE, "compression": {}})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "media_io_kwargs.video.num_frames")
    assert "reads 24 at a time" in refused.json()["error"]["message"], "it was read in chunks"


def test_a_stream_through_serve_is_the_whole_answer(service):
    request = {"model": POLICY, "messages": messages(), "max_tokens": 6}
    whole = service.client().chat.completions.create(**request).choices[0].message.content
    options = {"stream": True, "stream_options": {"include_usage": True}}
    parts = list(service.client().chat.completions.create(**request, **options))
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == whole
    assert parts[-1].usage.video_tokens == 288


def test_refusals_keep_their_form_through_serve(service):
    cases = [
        (service.post(FIXED, key="wrong-key-0123456789"), 401, "invalid_api_key"),
        (service.post(FIXED | {"model": "other"}), 404, "model_not_found"),
        (service.post(FIXED | {"messages": messages(url=data_url(b"no video"))}), 422, "unreadable_video"),
        (service.post(FIXED | {"stream": True, "messages": messages(url=data_url(b"none"))}), 422, "unreadable_video"),
        (service.post({}), 422, "invalid_value"),
    ]
    for answer, status, code in cases:
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_probes_models_page_and_metrics_are_there(service):
    wait_until(lambda: get(f"{service.url}/readyz").json() == {"status": "ready"})
    assert [model.id for model in service.client().models.list()] == [POLICY, BASE]
    assert get(f"{service.url}/").status_code == 200
    assert get(f"{service.url}/samples/0.mp4").headers["content-type"] == "video/mp4"

    def series() -> int:
        assert service.post(FIXED).status_code == 200
        text = get(f"{service.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text
        return len([line for line in text.splitlines() if line.startswith("cacovid_completion_tokens_total{")])

    wait_until(lambda: series() == 2)  # one for each of the two ingress replicas, once each has answered


def test_more_requests_than_wait_are_told_to_come_back(service):
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda _: service.post(FIXED), range(48)))
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 503}
    full = next(answer for answer in answers if answer.status_code == 503)
    assert (full.headers["retry-after"], full.json()["error"]["type"]) == ("3", "overloaded_error")
    wait_until(lambda: service.post(FIXED).status_code == 200)


def test_new_policies_are_served_without_a_failed_request_or_a_new_replica(service):
    before = [process.pid for process in engines()]
    more = service.config.model_copy(update={"policies": {POLICY: policy_folder(3), "second": policy_folder()}})
    with Load(service) as load:
        deploy(more)
        wait_until(lambda: "second" in {model.id for model in service.client().models.list()})
        time.sleep(0.5)
    assert set(load.statuses) == {200}, load.bodies[:2]
    assert [process.pid for process in engines()] == before
    body = {name: FIXED[name] for name in ("model", "messages", "compression")}
    kept = [service.post(body | {"model": model}, "/v1/compress").json()["kept"] for model in (POLICY, "second")]
    assert kept[0] != kept[1]
    deploy(service.config)


def test_a_broken_policy_is_told_and_the_service_goes_on(service, tmp_path):
    broken = service.config.model_copy(update={"policies": {POLICY: str(tmp_path)}})
    with pytest.raises(UserError, match=r"holds no policy\.json"):
        deploy(broken)
    assert service.post(FIXED).status_code == 200


def test_a_killed_engine_loses_no_request(service):
    (engine,) = engines()
    with Load(service) as load:
        wait_until(lambda: load.statuses[200] > 5)
        os.kill(engine.pid, signal.SIGKILL)
        answered = load.statuses[200]
        wait_until(lambda: load.statuses[200] > answered + 5, 200)
    assert set(load.statuses) <= {200, 503}, load.bodies[:2]
    assert all(json.loads(body)["error"]["type"] == "overloaded_error" for body in load.bodies)
    assert len(load.answers) == 1, "a request that was sent again gives the same answer"


def test_a_killed_template_of_the_decoders_is_replaced(service):
    found = templates()
    assert found
    for template in found:
        template.kill()
    wait_until(lambda: service.post(FIXED).status_code == 200)


def test_nothing_of_a_key_or_video_is_in_the_logs_of_the_session(service):
    logs = Path(ray._private.worker._global_node.get_logs_dir_path())

    def text() -> str:
        return "\n".join(path.read_text(errors="replace") for path in logs.rglob("*") if path.is_file())

    assert service.post(FIXED).status_code == 200
    wait_until(lambda: '"route": "/v1/chat/completions"' in text())
    assert KEY not in text()
    assert data_url(clip_bytes())[30:80] not in text()
