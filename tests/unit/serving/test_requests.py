"""What OpenAI's clients send by themselves, and what is refused with a word that helps."""

import httpx2 as httpx
import pytest
from pydantic import ValidationError

from serving.api.requests import ChatRequest, engine_request
from serving.config import ServiceConfig
from serving.engine.records import Decoding, Structure
from serving.errors import ApiError
from tests.support.serving_server import POLICY, running, service_config
from tests.support.serving_videos import clip_bytes, data_url
from tests.unit.serving.test_api import ask, messages, post

PLAIN = {"model": "m", "messages": [{"role": "user", "content": "what is red?"}]}


def decoding(**fields) -> Decoding:
    request, _ = engine_request(ChatRequest.model_validate(PLAIN | {"seed": 0} | fields), ServiceConfig())
    assert request.decoding is not None
    return request.decoding


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1, "top_p": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}, "logprobs": False},
        {"tools": [], "tool_choice": "auto", "parallel_tool_calls": True, "modalities": ["text"]},
        {"response_format": {"type": "text"}, "stop": [], "user": "u", "metadata": {"a": "b"}, "store": False},
        {"stream": True, "stream_options": {"include_usage": None}},
        dict.fromkeys(("max_tokens", "temperature", "stop", "stream_options", "compression", "media_io_kwargs")),
        {"structured_outputs": None, "response_format": {"type": "text"}, "top_logprobs": None},
        dict.fromkeys(("functions", "top_logprobs", "reasoning_effort", "a_field_of_tomorrow")),
    ],
)
def test_fields_that_change_nothing_are_taken(fields):
    assert decoding(**fields) == Decoding(max_tokens=128, seed=0)


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"n": 0}, ("n",)),
        ({"top_logprobs": 2}, ()),
        ({"logprobs": True, "top_logprobs": 21}, ("top_logprobs",)),
        ({"tools": [{"type": "function"}]}, ("tools",)),
        ({"tool_choice": "required"}, ("tool_choice",)),
        ({"response_format": {"type": "json_schema"}}, ("response_format",)),
        ({"structured_outputs": {"choice": ["a"], "regex": "a"}}, ("structured_outputs",)),
        ({"modalities": ["text", "audio"]}, ("modalities", 1)),
        ({"frequency_penalty": 2.5}, ("frequency_penalty",)),
        ({"logit_bias": {"5": 1.0}}, ("logit_bias",)),
        ({"reasoning_effort": "high"}, ("reasoning_effort",)),
        ({"messages": None}, ("messages",)),
    ],
)
def test_wishes_that_cannot_be_met_are_refused(fields, place):
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate(PLAIN | fields)
    assert caught.value.errors()[0]["loc"] == place


SCHEMA = {"type": "object", "properties": {"color": {"type": "string"}}}


@pytest.mark.parametrize(
    ("fields", "structure"),
    [
        ({"response_format": {"type": "json_object"}}, Structure("json_object")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "strict": True, "schema": SCHEMA},
                }
            },
            Structure("json_schema", SCHEMA),
        ),
        ({"structured_outputs": {"choice": ["red", "blue"]}}, Structure("choice", ["red", "blue"])),
        ({"structured_outputs": {"json": SCHEMA}}, Structure("json_schema", SCHEMA)),
        ({"structured_outputs": {"regex": "[ab]+"}}, Structure("regex", "[ab]+")),
    ],
)
def test_forms_of_answers_are_carried_to_the_engine(fields, structure):
    assert decoding(**fields).structure == structure


def test_the_engines_record_carries_every_field():
    fields = {"n": 3, "presence_penalty": 0.5, "frequency_penalty": -1, "logprobs": True, "top_logprobs": 4}
    assert decoding(**fields) == Decoding(max_tokens=128, n=3, presence_penalty=0.5, frequency_penalty=-1.0, logprobs=4)
    with pytest.raises(ApiError, match="at most 8 are drawn"):
        decoding(n=9)


def test_lengths_are_taken_from_either_field_and_must_agree():
    assert decoding(max_tokens=3).max_tokens == decoding(max_completion_tokens=3).max_tokens == 3
    assert decoding(max_tokens=3, max_completion_tokens=3).max_tokens == 3
    with pytest.raises(ValidationError, match="give one"):
        decoding(max_tokens=3, max_completion_tokens=4)
    with pytest.raises(ApiError, match="at most 1024"):
        decoding(max_tokens=1025)


def test_an_answer_can_be_sent_back_as_the_client_holds_it(service):
    """With all its null fields: refusal, audio, tool_calls and whatever OpenAI adds."""
    client = service.client()
    first = ask(client)
    for answer in (first.choices[0].message, first.choices[0].message.model_dump()):
        turns = [*messages(), answer, {"role": "user", "content": "and what color is the cross object?"}]
        assert ask(client, messages=turns).usage.video_tokens == 288


def test_the_type_that_a_browsers_recorder_writes_is_taken(service):
    url = data_url(clip_bytes(), "video/webm;codecs=vp8,opus")
    assert ask(service.client(), messages=messages(url=url)).usage.video_tokens == 288


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0", "'video_url'"),
        ({"messages": [{"role": "user", "content": [{"type": "sk-secret"}]}]}, "messages.0.content.0", "'video_url'"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role", "'assistant'"),
        ({"stop": ["a", ""]}, "stop.1", "at least 1"),
        ({"sk-secret and spaces": 1}, None, "unknown field"),
        ({"media_io_kwargs": {"video": {"fps": -1}}}, "media_io_kwargs.video.fps", "greater than 0"),
    ],
)
def test_the_field_at_fault_is_named_and_what_was_sent_is_not_repeated(service, change, param, said):
    error = post(service, "/v1/chat/completions", PLAIN | {"model": POLICY} | change).json()["error"]
    assert error["param"] == param
    assert said in error["message"]
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None]
)
def test_a_form_of_another_site_is_no_request(content_type):
    """Browsers send these across sites without asking first; JSON they do not."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    with running(service_config(api={"page": False}), keys=()) as service:
        answer = httpx.post(
            f"{service.url}/v1/chat/completions", content=b'{"model": "m"}', headers=headers, timeout=60
        )
        assert (answer.status_code, answer.json()["error"]["param"]) == (422, None)
        preflight = httpx.options(f"{service.url}/v1/chat/completions", headers={"Origin": "https://evil.test"})
        assert preflight.status_code == 405
        assert "access-control-allow-origin" not in preflight.headers
