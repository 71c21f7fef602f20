"""The service on Ray Serve when clients leave and replicas die or hang. Long answers come from a tiny random model."""

import concurrent.futures
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx2 as httpx
import pytest

from serving.config import ServiceConfig
from serving.running import deploy, running_service
from tests.support.https_server import HttpsServer, https_server
from tests.support.ports import free_port
from tests.support.processes import decoders, processes
from tests.support.tiny_models import save_tiny_model
from tests.support.waiting import wait_until
from tests.unit.serving.test_api import messages

pytestmark = pytest.mark.slow  # an application of its own, and replicas take their time to start again

PATIENCE_S = 150.0
LONG = 1900  # tokens; the model has no end that it would say
BODY = {"model": "tiny", "messages": messages(), "max_tokens": LONG}


@dataclass
class Service:
    url: str
    media: HttpsServer | None = None
    patience_s: float = PATIENCE_S

    def post(self, **changes: object) -> httpx.Response:
        return httpx.post(f"{self.url}/v1/chat/completions", json=BODY | changes, timeout=self.patience_s)

    def stream(self, **changes: object) -> tuple[int, str]:
        """Status, and the whole text or the error's type."""
        body = BODY | {"stream": True} | changes
        with httpx.stream("POST", f"{self.url}/v1/chat/completions", json=body, timeout=self.patience_s) as answer:
            lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
        if answer.status_code != 200:
            return answer.status_code, ""
        events = [json.loads(line) for line in lines if line != "[DONE]"]
        if "error" in events[-1]:
            return 503, events[-1]["error"]["type"]
        assert lines[-1] == "[DONE]"
        return 200, "".join(event["choices"][0]["delta"].get("content", "") for event in events)


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Iterator[HttpsServer]:
    with https_server(tmp_path_factory.mktemp("https")) as server:
        yield server


@pytest.fixture(scope="module")
def config(media, tmp_path_factory) -> ServiceConfig:
    model = save_tiny_model("llava_onevision", tmp_path_factory.mktemp("models") / "tiny")
    return ServiceConfig.model_validate(
        {
            "model": {"path": str(model), "num_frames": 8},
            "media": {
                "https_hosts": [f"localhost:{media.port}"],
                "private_networks": ["127.0.0.1/32", "::1/128"],
                "ca_file": str(media.ca_file),
                "cpus": 0.1,
                "max_replicas": 1,
            },
            "engine": {"cpus": 0.1, "max_tokens": LONG, "health_s": 10},
            "api": {"cpus": 0.1, "max_replicas": 1, "page": False},
        }
    )


@pytest.fixture(scope="module")
def service(cluster, config, media) -> Iterator[Service]:
    port = free_port()
    with running_service(config, "127.0.0.1", port):
        yield Service(f"http://127.0.0.1:{port}", media)


def left_early(service: Service, seconds: float) -> None:
    with pytest.raises(httpx.TimeoutException):
        httpx.post(f"{service.url}/v1/chat/completions", json=BODY, timeout=seconds)


def left_early_in_a_stream(service: Service, seconds: float) -> None:
    with httpx.stream(
        "POST", f"{service.url}/v1/chat/completions", json=BODY | {"stream": True}, timeout=PATIENCE_S
    ) as answer:
        lines = answer.iter_lines()
        assert [next(lines) for _ in range(20)]


@pytest.mark.parametrize("leave", [left_early, left_early_in_a_stream])
def test_a_client_that_leaves_ends_its_answer(service, leave):
    whole = service.post().json()["usage"]
    assert whole["completion_tokens"] == LONG
    takes_s = whole["timings"]["generate_ms"] / 1000
    leave(service, takes_s / 4)
    next_one = service.post(max_tokens=1).json()["usage"]
    assert next_one["timings"]["queue_ms"] / 1000 < takes_s / 2, "the engine went on for nobody"


def test_a_client_that_leaves_ends_the_reading_of_its_video(service):
    ends_its_reading(service)


def ends_its_reading(service: Service) -> None:
    trickling = messages(url=service.media.url("/trickle"))
    with concurrent.futures.ThreadPoolExecutor(1) as pool, httpx.Client(timeout=3.0) as client:
        asked = pool.submit(client.post, f"{service.url}/v1/chat/completions", json=BODY | {"messages": trickling})
        wait_until(decoders)
        with pytest.raises(httpx.TimeoutException):
            asked.result()
    wait_until(lambda: not decoders(), 15.0)  # half of media.job_timeout_s, which would end it anyhow


class Load:
    """Whole answers and streams in turn from a few threads until the block ends."""

    def __init__(self, service: Service, max_tokens: int) -> None:
        self._ask: list[Callable[[], tuple[int, str]]] = [
            lambda: service.stream(max_tokens=max_tokens),
            lambda: self._whole(service.post(max_tokens=max_tokens)),
        ]
        self._stop = threading.Event()
        self.outcomes: Counter[tuple[int, str]] = Counter()

    @staticmethod
    def _whole(answer: httpx.Response) -> tuple[int, str]:
        body = answer.json()
        ok = answer.status_code == 200
        return answer.status_code, body["choices"][0]["message"]["content"] if ok else body["error"]["type"]

    @property
    def answered(self) -> int:
        return sum(count for (status, _), count in self.outcomes.items() if status == 200)

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._work, args=(ask,)) for ask in self._ask * 2]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *caught: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, ask: Callable[[], tuple[int, str]]) -> None:
        while not self._stop.is_set():
            self.outcomes[ask()] += 1


@pytest.mark.parametrize("deployment", ["media", "engine"])
def test_a_killed_replica_loses_no_answer_and_no_stream(service, deployment):
    loses_nothing(service, deployment)


def loses_nothing(service: Service, deployment: str) -> None:
    """Under load, by the death of the only replica."""
    (replica,) = processes(f"ServeReplica:cacovid:{deployment}")
    with Load(service, max_tokens=40) as load:
        wait_until(lambda: load.answered > 4)
        replica.kill()
        before = load.answered
        wait_until(lambda: load.answered > before + 8, PATIENCE_S)
    statuses = Counter(status for status, _ in load.outcomes.elements())
    assert set(statuses) <= {200, 503}, load.outcomes
    assert {text for status, text in load.outcomes if status == 503} <= {"overloaded_error"}
    assert len({text for status, text in load.outcomes if status == 200}) == 1, "sent again, it says the same"


@pytest.mark.timeout(900)  # three checks of 30 seconds, and what is given to it to end by itself
def test_an_engine_that_hangs_is_replaced(service):
    """As a process that does nothing more; that no token comes is found in the same way (unit/serving/test_batcher)."""
    (hung,) = processes("ServeReplica:cacovid:engine")
    with Load(service, max_tokens=40) as load:
        wait_until(lambda: load.answered > 4)
        hung.suspend()
        wait_until(lambda: not hung.is_running(), 2 * PATIENCE_S)
        before = load.answered
        wait_until(lambda: load.answered > before, PATIENCE_S)
    assert {status for status, _ in load.outcomes} <= {200, 503}


def test_engines_that_read_videos_themselves_answer_the_same_through_the_same_faults(service, config):
    """Last in this file: the service stays as it is then."""
    before = service.post(max_tokens=40).json()
    deploy(config.model_copy(update={"media": config.media.model_copy(update={"place": "engine"})}))
    wait_until(lambda: not processes("ServeReplica:cacovid:media"))
    after = service.post(max_tokens=40).json()
    assert after["choices"] == before["choices"]
    assert after["usage"]["timings"]["decode_ms"] > 0
    assert service.stream(max_tokens=40) == (200, before["choices"][0]["message"]["content"])
    broken = service.post(messages=messages(url="data:video/mp4;base64,AAAA"))
    assert (broken.status_code, broken.json()["error"]["code"]) == (422, "unreadable_video")
    ends_its_reading(service)
    loses_nothing(service, "engine")
