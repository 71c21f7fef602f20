"""The service with either engine behind OpenAI's own client: one answer. And vLLM's against all that means harm."""

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import httpx2 as httpx
import pytest

from serving.config import MIB
from tests.support.hostile_requests import HOSTILE, ODD, QUESTION, Setting, chat, guarded, hostile_setting
from tests.support.serving_server import KEY, POLICY, Running, running
from tests.support.serving_videos import clip_bytes, data_url
from tests.support.waiting import PATIENCE_S

pytestmark = pytest.mark.vllm

REQUESTS = 200


@pytest.fixture(scope="module")
def setting(tmp_path_factory) -> Iterator[Setting]:
    with hostile_setting(tmp_path_factory) as made:
        yield made


@pytest.fixture(scope="module")
def services(setting) -> Iterator[dict[str, Running]]:
    with ExitStack() as stack:
        found = {}
        for kind in ("transformers", "vllm"):
            engine = {"kind": kind, "max_prompt_tokens": 2048, "vllm": {"kv_cache_bytes": 32 * MIB}}
            found[kind] = stack.enter_context(running(guarded(setting, engine=engine)))
        yield found


@pytest.fixture(scope="module")
def service(services) -> Running:
    return services["vllm"]


def messages(place: int = 0, text: str = QUESTION) -> list[dict]:
    video = {"type": "video_url", "video_url": {"url": data_url(clip_bytes(place))}}
    return [{"role": "user", "content": [video, {"type": "text", "text": text}]}]


WANTED = {
    "greedy": {},
    "all tokens": {"model": "embedded"},
    "contiguous positions": {"extra_body": {"compression": {"retention": 0.3, "positions": "contiguous"}}},
    "two drawn answers": {"temperature": 1.5, "seed": 5, "n": 2, "max_tokens": 12},
    "nucleus": {"temperature": 1.5, "top_p": 0.7, "seed": 9, "max_tokens": 12},
    "penalties": {"temperature": 0.8, "seed": 3, "presence_penalty": 1.0, "frequency_penalty": 0.5, "max_tokens": 12},
    "a stop string": {"temperature": 1.5, "seed": 5, "stop": ["e"], "max_tokens": 12},
}


@pytest.mark.parametrize("name", WANTED)
def test_openais_client_gets_one_answer_from_both_engines(services, name):
    asked = {"model": POLICY, "max_tokens": 6, "messages": messages(), "logprobs": True, "top_logprobs": 2}
    told = {
        kind: service.client().chat.completions.create(**(asked | WANTED[name])) for kind, service in services.items()
    }
    ours, theirs = told["transformers"], told["vllm"]
    assert [choice.message.content for choice in ours.choices] == [choice.message.content for choice in theirs.choices]
    assert [choice.finish_reason for choice in ours.choices] == [choice.finish_reason for choice in theirs.choices]
    assert ours.usage.completion_tokens == theirs.usage.completion_tokens
    assert ours.usage.video_tokens_kept == theirs.usage.video_tokens_kept
    for mine, other in zip(ours.choices, theirs.choices, strict=True):
        for one, two in zip(mine.logprobs.content, other.logprobs.content, strict=True):
            assert (one.token, one.logprob) == (two.token, pytest.approx(two.logprob, abs=1e-4))


def test_a_stream_says_what_the_whole_answer_says(service):
    asked = {"model": POLICY, "max_tokens": 12, "messages": messages(), "temperature": 1.5, "seed": 5}
    whole = service.client().chat.completions.create(**asked).choices[0].message.content
    chunks = service.client().chat.completions.create(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == whole


@pytest.mark.parametrize(
    "form",
    [
        {"structured_outputs": {"regex": "(((("}},
        {"structured_outputs": {"grammar": "root ::= ("}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "c", "schema": {"type": "colour"}}}},
        {"response_format": {"type": "json_object"}},  # for which the embedded model lacks the braces
    ],
)
def test_a_form_that_no_answer_can_have_is_refused(service, form):
    answer = httpx.post(f"{service.url}/v1/chat/completions", json=chat() | form, headers=head(), timeout=PATIENCE_S)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "response_format"), answer.text


def test_vllm_keeps_an_answer_to_its_choices(service):
    asked = {"model": POLICY, "max_tokens": 12, "messages": messages(), "temperature": 1.0}
    forms = {"structured_outputs": {"choice": ["red", "blue"]}}
    answers = [service.client().chat.completions.create(**asked, seed=seed, extra_body=forms) for seed in range(6)]
    assert {answer.choices[0].message.content for answer in answers} <= {"red", "blue"}


def head() -> dict[str, str]:
    return {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


VALUES = [
    None,
    True,
    -1,
    0,
    3,
    21,
    10**30,
    1e300,
    "",
    "a",
    "\x00",
    [],
    [[]],
    [1],
    ["a"] * 9,
    {},
    {"type": "x"},
    {"a": {}},
]
FIELDS = (
    "structured_outputs",
    *("n", "seed", "stop", "logprobs", "top_logprobs", "temperature", "top_p", "presence_penalty", "frequency_penalty"),
    *("response_format", "max_tokens", "max_completion_tokens", "stream", "stream_options", "compression", "messages"),
    *("media_io_kwargs", "model"),
)


def spoilt(count: int) -> list[dict]:
    """Valid requests with one or two values of another kind."""
    draw = random.Random(0)
    bodies = []
    for _ in range(count):
        body = chat()
        for name in draw.sample(FIELDS, draw.choice((1, 2))):
            body[name] = draw.choice(VALUES)
        bodies.append(body)
    return bodies


def test_two_hundred_hostile_requests_get_no_server_error(service, setting):
    cases = [(case.body(setting), case.path, case.method) for case in HOSTILE]
    cases += [
        (body, "/v1/chat/completions", "POST") for body in [*ODD.values(), *spoilt(REQUESTS - len(cases) - len(ODD))]
    ]
    assert len(cases) >= REQUESTS

    def send(case) -> int:
        body, path, method = case
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if method == "ANON" else head()
        kind = "POST" if method == "ANON" else method
        return httpx.request(kind, service.url + path, content=content, headers=headers, timeout=PATIENCE_S).status_code

    with ThreadPoolExecutor(4) as pool:
        statuses = list(pool.map(send, cases))
    assert [status for status in statuses if status >= 500] == []
    assert send((chat(), "/v1/chat/completions", "POST")) == 200
