"""``cacovid proxy`` in front of a real vLLM server that knows nothing of this project: its answers are ours."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import openai
import psutil
import pytest
from transformers import Qwen2ForCausalLM

from serving.config import ServiceConfig
from tests.support.ports import free_port
from tests.support.processes import processes
from tests.support.serving_server import BASE, POLICY, Running, embedded_llm, running, service_config
from tests.support.serving_videos import clip_bytes, data_url
from tests.support.tiny_models import save_tiny_model
from tests.support.waiting import wait_until
from tests.unit.serving.test_api import ask, messages, question_about
from tests.vllm.engines import HEAD

pytestmark = pytest.mark.vllm

START_S = 600
ARGUMENTS = ("--dtype", "float32", "--enforce-eager", "--enable-prompt-embeds", "--max-model-len", "2048")
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}


def language_model(folder: Path) -> Path:
    """The embedded model's language model alone, as a text model of its own."""
    whole = embedded_llm()
    model = Qwen2ForCausalLM(whole.model.config.text_config)
    model.model.load_state_dict(whole.model.get_decoder().state_dict())
    model.lm_head.load_state_dict(whole.model.get_output_embeddings().state_dict())
    model.save_pretrained(folder)
    whole.processor.tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def vllm_server(model: Path, log: Path) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    with log.open("w") as lines:
        server = subprocess.Popen(
            [*command, *ARGUMENTS, "--host", "127.0.0.1", "--generation-config", "vllm"],
            env=os.environ | ENVIRONMENT,
            stdout=lines,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            return httpx.get(f"{url}/health", timeout=5).status_code == 200
        except httpx.HTTPError:
            return False

    try:
        wait_until(ready, START_S)
        yield url
    finally:
        for process in (*psutil.Process(server.pid).children(recursive=True), server):
            process.kill()
        server.wait(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("upstream")
    with vllm_server(language_model(folder / "model"), folder / "log") as url:
        yield url


@pytest.fixture(scope="module")
def proxy(server) -> Iterator[Running]:
    with running(service_config(engine={"kind": "upstream", "upstream": {"url": server}})) as service:
        yield service


@pytest.fixture(scope="module")
def ours() -> Iterator[Running]:
    with running(service_config()) as service:
        yield service


def say_the_same(proxy: Running, ours: Running, clips: int, **wish) -> None:
    """Both services about the first ``clips`` clips: words, ends and log-probabilities."""
    for place in range(clips):
        text, _ = question_about(place)
        asked = {"messages": messages(text, data_url(clip_bytes(place))), "max_tokens": 8} | wish
        told = [ask(each.client(), logprobs=True, top_logprobs=3, **asked) for each in (proxy, ours)]
        there, here = (completion.choices[0] for completion in told)
        assert there.message == here.message
        assert there.finish_reason == here.finish_reason
        assert told[0].usage.prompt_tokens == told[1].usage.prompt_tokens
        for one, two in zip(there.logprobs.content, here.logprobs.content, strict=True):
            assert (one.token, one.logprob) == (two.token, pytest.approx(two.logprob, abs=1e-4))
            assert [each.token for each in one.top_logprobs] == [each.token for each in two.top_logprobs]


@pytest.mark.parametrize("retention", [0.05, 0.25, 1.0])
def test_the_answer_is_this_services_own(proxy, ours, retention):
    say_the_same(proxy, ours, 3, extra_body={"compression": {"retention": retention, "positions": "contiguous"}})


def test_a_whole_qwen_with_its_tower_on_the_other_side_says_the_same(tmp_path):
    """What a user of Qwen2.5-VL already runs; its rotary position of three parts counts embeddings like text."""
    model = {"path": str(save_tiny_model("qwen2_5_vl", tmp_path / "qwen", head=HEAD)), "num_frames": 4}
    with (
        vllm_server(Path(model["path"]), tmp_path / "log") as url,
        running(ServiceConfig(model=model, engine={"kind": "upstream", "upstream": {"url": url}})) as proxy,
        running(ServiceConfig(model=model)) as ours,
    ):
        for retention in (0.25, 1.0):
            wish = {"retention": retention, "positions": "contiguous", "method": "uniform"}
            say_the_same(proxy, ours, 2, model=ours.config.base_id, extra_body={"compression": wish})


def test_streams_stops_texts_and_penalties_go_through(proxy, ours):
    wish = {"compression": {"retention": 0.25, "positions": "contiguous"}}
    changes = {"max_tokens": 12, "frequency_penalty": 1.5, "presence_penalty": 0.5, "extra_body": wish}
    whole = [ask(each.client(), **changes).choices[0].message.content for each in (proxy, ours)]
    assert whole[0] == whole[1]
    parts = ask(proxy.client(), stream=True, **changes)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole[1]
    asked = {"model": BASE, "prompt": "red red", "max_tokens": 12, "stop": ["blue"], "frequency_penalty": 2.0}
    texts = [each.client().completions.create(**asked).choices[0].text for each in (proxy, ours)]
    assert texts[0] == texts[1]


def test_draws_are_the_servers_own_and_follow_the_seed(proxy):
    asked = {"model": BASE, "prompt": "what color is the ring", "max_tokens": 4, "temperature": 2.0, "seed": 1, "n": 6}
    told = [[choice.text for choice in proxy.client().completions.create(**asked).choices] for _ in range(2)]
    assert told[0] == told[1]
    assert len(set(told[0])) > 1


def test_forms_of_answers_are_the_servers(proxy):
    for structure, wanted in (({"choice": ["red", "blue"]}, {"red", "blue"}), ({"regex": "red|blue"}, {"red", "blue"})):
        answer = ask(proxy.client(), extra_body={"structured_outputs": structure}, max_tokens=8)
        assert answer.choices[0].message.content in wanted


def test_what_the_server_refuses_is_told(proxy):
    """Longer than its --max-model-len, which this service does not know."""
    with pytest.raises(openai.BadRequestError, match="the vLLM server refused the request") as refused:
        ask(proxy.client(), model=POLICY, messages=messages("what " * 2500))
    assert refused.value.code == "upstream_refused"


def test_a_server_that_dies_is_told_at_once(proxy):
    """Last in this file."""
    (upstream,) = processes("vllm.entrypoints.openai.api_server")
    for process in (*upstream.children(recursive=True), upstream):  # a core outlives the server that it belongs to
        process.kill()
    codes = []
    for _ in range(2):  # the first may have a connection from before
        with pytest.raises(openai.InternalServerError, match="the vLLM server") as refused:
            ask(proxy.client())
        codes.append(refused.value.code)
    assert codes[0] in ("upstream_lost", "upstream_unavailable")
    assert (refused.value.status_code, codes[1]) == (503, "upstream_unavailable")
