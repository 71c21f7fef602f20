"""What vLLM's users expect of the API, with OpenAI's own client against the embedded model."""

import itertools
import json
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from cacovid.compressor import Compressor
from serving.engine.records import ALL
from tests.support.serving_server import BASE, POLICY, embedded_llm, policy_folder
from tests.support.serving_videos import clip_bytes, data_url
from tests.unit.serving.test_api import ask, messages, post, question_about

DRAWN = {"temperature": 1.5, "seed": 11, "max_tokens": 6}
SCHEMA = {"type": "object", "properties": {"color": {"type": "string"}}}


def streamed(client, **changes) -> list[Any]:
    return list(ask(client, stream=True, **changes))


def test_log_probabilities_are_the_models_own(client, tmp_path):
    """Also of a drawn token: temperature and nucleus do not change them."""
    llm = embedded_llm()
    text, _ = question_about()
    asked = {"model": BASE, "messages": messages(text), "extra_body": {}, "logprobs": True, "top_logprobs": 5}
    whole = first_logprobs(tmp_path / "clip.mp4", text)
    for drawing in ({}, {"temperature": 2.0, "top_p": 0.5, "seed": 3}):
        (choice,) = ask(client, max_tokens=4, **asked, **drawing).choices
        first = choice.logprobs.content[0]
        assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
        assert [other.logprob for other in first.top_logprobs] == pytest.approx(whole.topk(5).values.tolist(), abs=1e-4)
        token = llm.processor.tokenizer.convert_tokens_to_ids(first.token.strip())
        assert first.logprob == pytest.approx(float(whole[token]), abs=1e-4)
        assert bytes(first.bytes).decode() == first.token


def first_logprobs(path: Path, text: str) -> torch.Tensor:
    """(V,) of the first token, from all tokens of the clip, by the library alone."""
    path.write_bytes(clip_bytes())
    encoded = Compressor.from_pretrained(policy_folder(), "embedded")(path, text, retention=1.0).encoded
    return embedded_llm().first_logits(encoded, torch.arange(encoded.grid.tokens)[None])[0].log_softmax(0)


def test_answers_without_log_probabilities_have_none(client):
    assert ask(client).choices[0].logprobs is None
    assert all(part.choices[0].logprobs is None for part in streamed(client))


@pytest.mark.parametrize("stop", [None, "zzz"])
def test_a_stream_tells_the_same_as_the_whole_answer(client, stop):
    asked = DRAWN | {"n": 3, "logprobs": True, "top_logprobs": 2, "stop": stop}
    whole = ask(client, **asked)
    texts, tokens, reasons = ["", "", ""], [[], [], []], [None] * 3
    for part in streamed(client, **asked):
        (choice,) = part.choices
        texts[choice.index] += choice.delta.content or ""
        tokens[choice.index] += choice.logprobs.content if choice.logprobs else []
        reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.message.content for choice in whole.choices]
    assert tokens == [choice.logprobs.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]


def test_the_answers_of_one_request_are_those_of_the_seeds_one_after_the_other(client):
    def asked(**changes: int) -> Any:
        wish = {"model": BASE, "prompt": "what color is the ring", "temperature": 2.0, "seed": 1, "max_tokens": 4}
        return client.completions.create(**(wish | changes))

    several = asked(n=4)
    alone = [asked(seed=1 + index) for index in range(4)]
    assert [choice.text for choice in several.choices] == [one.choices[0].text for one in alone]
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.usage.completion_tokens == sum(one.usage.completion_tokens for one in alone)
    assert len({choice.text for choice in several.choices}) > 1


def test_penalties_keep_an_answer_from_repeating_itself(service, client):
    def words(**penalties: float) -> list[str]:
        prompt = "red red red red"
        answer = client.completions.create(model=BASE, prompt=prompt, max_tokens=12, **penalties)
        return answer.choices[0].text.split()

    free, held = words(), words(frequency_penalty=2.0, presence_penalty=2.0)
    assert len(set(held)) > len(set(free))


@pytest.mark.parametrize(
    "wish",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}},
        {"response_format": {"type": "json_object"}},
        {"extra_body": {"structured_outputs": {"choice": ["red", "blue"]}}},
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_this_engine_cannot_do_is_refused_with_the_name_of_the_one_that_can(client, wish, stream):
    with pytest.raises(openai.BadRequestError, match=r'engine\.kind = "vllm"') as refused:
        ask(client, stream=stream, **wish)
    assert refused.value.code == "unsupported"


def test_text_is_gone_on_with(client):
    """Without a chat template: the model's own greedy continuation."""
    llm = embedded_llm()
    prompt = "what color is the ring"
    completion = client.completions.create(model=BASE, prompt=prompt, max_tokens=5, logprobs=2)
    encoded = llm.encode_text(prompt)
    expected = llm.answer(encoded, torch.zeros(1, 0, dtype=torch.int64), 5)
    (choice,) = completion.choices
    assert choice.text.strip() == expected.texts[0]
    assert completion.object == "text_completion"
    assert completion.usage.prompt_tokens == encoded.length
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.text_offset == list(itertools.accumulate(map(len, choice.logprobs.tokens[:-1]), initial=0))
    assert all(len(top) == 2 for top in choice.logprobs.top_logprobs)
    parts = list(client.completions.create(model=BASE, prompt=[prompt], max_tokens=5, logprobs=2, stream=True))
    assert "".join(part.choices[0].text for part in parts) == choice.text
    assert parts[-1].choices[0].finish_reason == choice.finish_reason
    told = [part.choices[0].logprobs for part in parts if part.choices[0].logprobs]
    assert [offset for logprobs in told for offset in logprobs.text_offset] == choice.logprobs.text_offset


def test_several_turns_about_one_video_run_the_tower_once_and_compress_for_each_question(service, client, monkeypatch):
    llm = embedded_llm()
    watched = []
    watch = llm.watch
    monkeypatch.setattr(llm, "watch", lambda frames, fps: watched.append(1) or watch(frames, fps=fps))
    first = messages(url=data_url(clip_bytes(7)))
    answer = ask(client, messages=first).choices[0].message
    turns = [*first, answer.model_dump(), {"role": "user", "content": "what shape is the pink object?"}]
    assert ask(client, messages=turns).usage.video_tokens == 288
    body = {"model": POLICY, "compression": {"retention": 0.1}}
    kept = [post(service, "/v1/compress", body | {"messages": each}).json()["kept"] for each in (first, turns)]
    assert len(watched) == 1
    assert kept[0] != kept[1]


HOSTILE: dict[str, dict[str, Any]] = {
    "no answers": {"n": 0},
    "a million answers": {"n": 10**6},
    "fractional answers": {"n": 1.5},
    "all tokens as alternatives": {"logprobs": True, "top_logprobs": 10**9},
    "negative alternatives": {"logprobs": True, "top_logprobs": -1},
    "alternatives without log-probabilities": {"top_logprobs": 3},
    "infinite penalty": {"frequency_penalty": float("inf")},
    "no number as a penalty": {"presence_penalty": float("nan")},
    "penalty out of range": {"presence_penalty": -2.5},
    "seed of another size": {"seed": 2**63},
    "schema without a schema": {"response_format": {"type": "json_schema"}},
    "schema that is a list": {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": []}}},
    "schema of a megabyte": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"a": "b" * 10**6}}}
    },
    "deep schema": {
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": json.loads('{"a":' * 90 + "1" + "}" * 90)},
        }
    },
    "no choice": {"structured_outputs": {"choice": []}},
    "a thousand choices": {"structured_outputs": {"choice": ["a"] * 1000}},
    "two forms at once": {"structured_outputs": {"regex": "a", "grammar": "b"}},
    "unknown form": {"structured_outputs": {"python": "import os"}},
    "expression without end": {"structured_outputs": {"regex": "(a+)+$" * 1000}},
    "logit bias": {"logit_bias": {"1": 100}},
}
HOSTILE_TEXTS: dict[str, dict[str, Any]] = {
    "no prompt": {},
    "empty prompt": {"prompt": ""},
    "prompt of no word": {"prompt": "   "},
    "several prompts": {"prompt": ["a", "b"]},
    "token ids": {"prompt": [1, 2, 3]},
    "placeholder of a video": {"prompt": "<video> what?"},
    "endless prompt": {"prompt": "a " * 50_000},
    "echo": {"prompt": "red", "echo": True},
    "suffix": {"prompt": "red", "suffix": "blue"},
    "best of many": {"prompt": "red", "best_of": 10},
    "video in a text completion": {"prompt": "red", "messages": []},
    "half a surrogate pair": {"prompt": "\ud800"},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_fields_are_refused(service, name):
    body = {"model": POLICY, "messages": messages()} | HOSTILE[name]
    refused = post(service, "/v1/chat/completions", body)
    assert 400 <= refused.status_code < 500, refused.text
    assert set(refused.json()["error"]) == {"message", "type", "param", "code"}
    assert len(refused.text) < 1000


@pytest.mark.parametrize("name", HOSTILE_TEXTS)
def test_hostile_text_completions_are_refused(service, name):
    refused = post(service, "/v1/completions", {"model": BASE} | HOSTILE_TEXTS[name])
    assert 400 <= refused.status_code < 500, refused.text
    assert len(refused.text) < 1000


def test_the_model_alone_answers_text_under_a_policys_id_too(client):
    named = [client.completions.create(model=model, prompt="what color", max_tokens=3) for model in (BASE, POLICY)]
    assert named[0].choices[0].text == named[1].choices[0].text
    assert named[1].usage.compression["method"] == ALL
