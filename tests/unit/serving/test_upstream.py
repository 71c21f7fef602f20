"""The proxy in front of a server that speaks vLLM's protocol; tests/vllm/test_proxy.py has a real one."""

import json

import openai
import pytest

from cacovid.config import ModelConfig
from cacovid.errors import UserError
from serving.application import check
from serving.config import ServiceConfig
from serving.config_file import parse_service_config
from tests.support.ports import free_port
from tests.support.serving_engine import tiny_folder
from tests.support.serving_server import BASE, POLICY, embedded_llm, running, service_config
from tests.support.serving_videos import clip_bytes, data_url
from tests.support.upstream_server import NAME, upstream_server
from tests.support.waiting import wait_until
from tests.unit.serving.test_api import ask, messages, post, question_about

CONTIGUOUS = {"extra_body": {"compression": {"retention": 0.25, "positions": "contiguous"}}}


def proxy_config(url: str, **upstream: str) -> ServiceConfig:
    return service_config(api={"page": False}, engine={"kind": "upstream", "upstream": {"url": url} | upstream})


@pytest.fixture(scope="module")
def upstream():
    with upstream_server(embedded_llm()) as server:
        yield server


@pytest.fixture(scope="module")
def proxy(upstream):
    with running(proxy_config(upstream.url)) as service:
        yield service


@pytest.fixture(scope="module")
def ours():
    with running(service_config(api={"page": False})) as service:
        yield service


@pytest.fixture(autouse=True)
def mended(upstream):
    yield
    upstream.refuse = upstream.events = None
    upstream.endless = False


@pytest.mark.parametrize("place", range(3))
def test_the_answer_is_this_services_own(proxy, ours, place):
    text, _ = question_about(place)
    asked = {"messages": messages(text, data_url(clip_bytes(place))), "logprobs": True, "top_logprobs": 3}
    there, here = (ask(service.client(), **asked, **CONTIGUOUS) for service in (proxy, ours))
    assert there.choices[0].message == here.choices[0].message
    assert there.choices[0].finish_reason == here.choices[0].finish_reason
    for mine, other in zip(there.choices[0].logprobs.content, here.choices[0].logprobs.content, strict=True):
        assert mine.token == other.token
        assert mine.logprob == pytest.approx(other.logprob, abs=1e-4)
        assert [each.token for each in mine.top_logprobs] == [each.token for each in other.top_logprobs]
    assert there.usage.prompt_tokens == here.usage.prompt_tokens
    assert there.usage.completion_tokens == here.usage.completion_tokens


def test_positions_are_contiguous_where_none_are_named_and_others_are_refused(proxy):
    client = proxy.client()
    assert ask(client).usage.compression["positions"] == "contiguous"
    with pytest.raises(openai.UnprocessableEntityError, match="contiguous"):
        ask(client, extra_body={"compression": {"positions": "original"}})
    assert {model.positions for model in client.models.list()} == {"contiguous"}


def test_a_stream_and_a_text_go_there_too(proxy, ours):
    whole = ask(ours.client(), **CONTIGUOUS).choices[0].message.content
    parts = ask(proxy.client(), stream=True, **CONTIGUOUS)
    assert "".join(part.choices[0].delta.content or "" for part in parts) == whole
    texts = [
        service.client().completions.create(model=BASE, prompt="what color is", max_tokens=4).choices[0].text
        for service in (proxy, ours)
    ]
    assert texts[0] == texts[1]


def test_sampling_parameters_are_passed_on(proxy, upstream):
    schema = {"type": "object"}
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    wish = {"temperature": 0.7, "top_p": 0.9, "seed": 5, "n": 2, "presence_penalty": 0.5, "frequency_penalty": -0.5}
    upstream.asked.clear()
    completion = ask(proxy.client(), **wish, max_tokens=3, logprobs=True, top_logprobs=4, response_format=form)
    assert len(completion.choices) == 2
    first, second = sorted(upstream.asked, key=lambda each: each["seed"])
    assert (first["seed"], second["seed"]) == (5, 6)
    del wish["n"], wish["seed"]
    expected = wish | {"model": NAME, "max_tokens": 3, "logprobs": 4, "structured_outputs": {"json": schema}}
    assert {name: first[name] for name in expected} == expected
    ask(proxy.client())
    assert not {"seed", "logprobs", "structured_outputs"} & set(upstream.asked[-1])


@pytest.mark.parametrize(
    ("status", "answered", "code"),
    [
        (400, 400, "upstream_refused"),
        (401, 502, "upstream_misconfigured"),
        (404, 502, "upstream_misconfigured"),
        (503, 503, "overloaded"),
        (500, 502, "upstream_failed"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_refusals_of_the_server_are_told_for_what_they_are(proxy, upstream, status, answered, code, stream):
    upstream.refuse = (status, {"error": {"message": "max_tokens is\ntoo large"}})
    refused = post(proxy, "/v1/chat/completions", {"model": POLICY, "messages": messages(), "stream": stream})
    assert (refused.status_code, refused.json()["error"]["code"]) == (answered, code)
    assert ("max_tokens is too large" in refused.text) == (status == 400)


@pytest.mark.parametrize(
    "events",
    [
        ["data: {no json\n\n"],
        ["data: []\n\n"],
        ['data: {"choices": [{"text": "red"}]}\n\n'],  # no token ids
        ['data: {"choices": [{"token_ids": [1], "logprobs": {"tokens": []}}]}\n\n'],
        ['data: {"error": {"message": "the core is dead"}}\n\n'],
        ["data: [DONE]\n\n"],
        [],
    ],
)
def test_an_answer_of_another_form_is_the_servers_fault(proxy, upstream, events):
    upstream.events = events
    refused = post(proxy, "/v1/chat/completions", {"model": POLICY, "messages": messages()})
    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "upstream_failed")


def test_a_server_that_is_not_there_is_told_and_found_again(upstream):
    with running(proxy_config(f"http://127.0.0.1:{free_port()}")) as service:
        for stream in (False, True):
            refused = post(service, "/v1/chat/completions", {"model": POLICY, "messages": messages(), "stream": stream})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "upstream_unavailable")
            assert "retry-after" in refused.headers
            assert "127.0.0.1" not in refused.text


def test_a_client_that_leaves_ends_its_answer_at_the_server(proxy, upstream):
    upstream.endless, before = True, upstream.left
    stream = ask(proxy.client(), max_tokens=1000, stream=True)
    for _, part in zip(range(3), stream, strict=False):
        assert part.choices
    stream.close()
    wait_until(lambda: upstream.left > before)


def test_a_servers_key_is_sent_and_nobody_elses(upstream, tmp_path):
    (tmp_path / "key").write_text("# the server's\ntoken-abc123\n")
    with running(proxy_config(upstream.url + "/v1/", key_file=str(tmp_path / "key"))) as service:
        ask(service.client())
    assert upstream.keys[-1] == "Bearer token-abc123"


def test_a_family_whose_tower_levels_would_be_lost_is_refused_with_the_plugins_name():
    config = ServiceConfig(
        model=ModelConfig(path=tiny_folder("qwen3_vl")),
        engine={"kind": "upstream", "upstream": {"url": "http://127.0.0.1:1"}},
    )
    with pytest.raises(UserError, match="plugin"):
        check(config)


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"kind": "upstream"}, "give both or neither"),
        ({"upstream": {"url": "http://a"}}, "give both or neither"),
        ({"kind": "upstream", "upstream": {"url": "ftp://a"}}, "no address of a server"),
        ({"kind": "upstream", "upstream": {"url": "http://user:secret@a"}}, "no address of a server"),
    ],
)
def test_mistakes_in_the_configuration_are_named(engine, said):
    with pytest.raises(UserError, match=said):
        parse_service_config(json.loads(json.dumps({"engine": engine})))
