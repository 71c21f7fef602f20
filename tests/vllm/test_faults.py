"""vLLM in a replica of Ray Serve: its core dies under load, policies change, clients leave, the service ends."""

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2 as httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cacovid.config import TrainConfig
from cacovid.models.loading import load_video_llm
from cacovid.policy.build import policy_for
from serving.config import MIB, ServiceConfig
from serving.running import deploy, running_service
from tests.integration.conftest import cluster  # noqa: F401  a fixture
from tests.integration.test_serve_faults import BODY, Load, Service
from tests.support.ports import free_port
from tests.support.processes import is_running, processes
from tests.support.tiny_models import save_tiny_model
from tests.support.waiting import get, wait_until
from tests.vllm.engines import HEAD

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(1200)]

PATIENCE_S = 500.0  # of a busy machine: three processes import torch and vLLM one after the other
CORE = "VLLM::EngineCore"
DRAWN = "vllm:generation_tokens_total"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> ServiceConfig:
    model = save_tiny_model("llava_onevision", tmp_path_factory.mktemp("models") / "tiny", head=HEAD)
    return ServiceConfig.model_validate(
        {
            "model": {"path": str(model), "num_frames": 8},
            "media": {"cpus": 0.1, "max_replicas": 1},
            "engine": {
                "kind": "vllm",
                "cpus": 0.1,
                "ongoing": 4,
                "waiting": 2,
                "max_tokens": 1900,
                "max_prompt_tokens": 2048,
                "vllm": {"kv_cache_bytes": 32 * MIB},
            },
            "api": {"cpus": 0.1, "max_replicas": 1, "page": False, "request_timeout_s": PATIENCE_S},
        }
    )


@pytest.fixture(scope="module")
def service(cluster, config) -> Iterator[Service]:  # noqa: F811
    port = free_port()
    with running_service(config, "127.0.0.1", port):
        yield Service(f"http://127.0.0.1:{port}", patience_s=PATIENCE_S)
        left = core().pid
    wait_until(lambda: not is_running(left))  # it ends with its replica


def core() -> psutil.Process:
    """vLLM's core process of the one replica."""
    (found,) = processes(CORE)
    return found


def replicas() -> list[psutil.Process]:
    return processes("ServeReplica:cacovid:engine")


def test_policies_change_in_running_replicas(service, config, tmp_path_factory):
    policy = str(tmp_path_factory.mktemp("policy"))  # later replicas load it too
    policy_for(load_video_llm(config.model), TrainConfig()).save_pretrained(policy)
    before = (replicas(), core())
    with Load(service, max_tokens=40) as load:
        wait_until(lambda: load.answered > 2, PATIENCE_S)
        deploy(config.model_copy(update={"policies": {"second": policy}}))
        assert service.post(model="second", max_tokens=4).status_code == 200
    assert {status for status, _ in load.outcomes} == {200}
    assert (replicas(), core()) == before


def test_vllms_metrics_are_among_the_services(service):
    service.post(max_tokens=4)
    text = get(f"{service.url}/metrics").text
    assert "vllm:generation_tokens_total{" in text
    assert "cacovid_requests_total{" in text
    assert text.count("replica=") > 10


def test_vllm_keeps_an_answer_to_its_schema(service):
    form = {"type": "json_schema", "json_schema": {"name": "c", "schema": {"enum": ["red", "blue"]}}}
    asked = {"max_tokens": 12, "temperature": 1.0, "response_format": form}
    answers = [service.post(**asked, seed=seed).json()["choices"][0]["message"]["content"] for seed in range(6)]
    assert set(answers) <= {'"red"', '"blue"'}


def drawn(service: Service) -> float:
    """Tokens that vLLM has drawn."""
    families = text_string_to_metric_families(get(f"{service.url}/metrics").text)
    return sum(sample.value for family in families for sample in family.samples if sample.name == DRAWN)


def test_a_client_that_leaves_ends_its_answer(service):
    before = drawn(service)
    body = BODY | {"stream": True, "max_tokens": 1900}
    with httpx.stream("POST", f"{service.url}/v1/chat/completions", json=body, timeout=PATIENCE_S) as answer:
        assert next(answer.iter_lines())

    def rests() -> bool:
        known = drawn(service)
        time.sleep(3)
        return drawn(service) == known > before

    wait_until(rests, PATIENCE_S)
    assert drawn(service) - before < 1900, "vLLM went on for nobody"


def test_what_finds_no_room_is_refused_at_once(service):
    """Four answers under way, two waiting."""
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: service.post(max_tokens=400), range(12)))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert {answer.status_code for answer in answers} == {200, 503}
    assert len(refused) <= 6
    assert all(int(answer.headers["Retry-After"]) > 0 for answer in refused)


def test_other_settings_let_answers_under_way_end(service, config):
    old, (replica,) = core(), replicas()
    other = config.model_copy(update={"engine": config.engine.model_copy(update={"max_batch": 4})})
    with Load(service, max_tokens=400) as load:
        wait_until(lambda: load.answered > 2, PATIENCE_S)
        deploy(other)
        wait_until(lambda: not is_running(old.pid), PATIENCE_S)
    assert {status for status, _ in load.outcomes} == {200}, load.outcomes
    assert len({text for _, text in load.outcomes}) == 1
    assert not is_running(replica.pid)
    assert core() != old


def test_a_killed_core_loses_nothing_that_was_accepted(service):
    killed, (replica,) = core(), replicas()
    with Load(service, max_tokens=80) as load:
        wait_until(lambda: load.answered > 4, PATIENCE_S)
        killed.kill()
        before = load.answered
        wait_until(lambda: not is_running(replica.pid), PATIENCE_S)
        wait_until(lambda: load.answered > before + 8, PATIENCE_S)
    assert Counter(status for status, _ in load.outcomes.elements()).keys() == {200}, load.outcomes
    assert len({text for _, text in load.outcomes}) == 1, "sent again, it says the same"


def test_a_killed_replica_leaves_no_core_behind(service):
    (replica,), orphan = replicas(), core().pid
    replica.kill()
    wait_until(lambda: not is_running(orphan), PATIENCE_S)
    assert service.post(max_tokens=4).status_code == 200
