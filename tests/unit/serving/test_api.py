"""The HTTP side with OpenAI's own client, in one process and without Ray."""

import base64
import io
import json
from pathlib import Path

import httpx2 as httpx
import openai
import pytest
import torch
from safetensors.torch import load as load_tensors

from cacovid.compressor import Compressor
from cacovid.embedded.clips import draw_clip
from cacovid.embedded.questions import clip_questions
from cacovid.embedded.splits import split_seeds
from serving.engine.records import Delta, Failed
from serving.errors import ApiError, overloaded
from serving.page.samples import draw_samples
from tests.support.serving_server import BASE, KEY, POLICY, embedded_llm, policy_folder, running, service_config
from tests.support.serving_videos import clip_bytes, data_url, frames_url, jpeg
from tests.support.waiting import PATIENCE_S, get, wait_until


def question_about(place: int = 0) -> tuple[str, str]:
    """A question about a development clip with its options, and the right letter."""
    clip = draw_clip(split_seeds("development", 1, place)[0])
    question = clip_questions(clip)[0]
    options = [f"{letter}. {text}" for letter, text in zip("ABCD", question.option_texts(), strict=True)]
    return "\n".join([question.text(clip), *options]), question.letter


def messages(text: str | None = None, url: str | None = None, **video) -> list[dict]:
    video_part = {"type": "video_url", "video_url": {"url": url or data_url(clip_bytes()), **video}}
    return [{"role": "user", "content": [video_part, {"type": "text", "text": text or question_about()[0]}]}]


@pytest.fixture(scope="module")
def service():
    with running(service_config(), draw_samples(2)) as running_service:
        yield running_service


@pytest.fixture(scope="module")
def client(service):
    return service.client()


def post(service, path: str, body, key: str = KEY, **headers) -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"} | headers
    return httpx.post(service.url + path, content=content, headers=head, timeout=PATIENCE_S)


def ask(client, **changes):
    request = {"model": POLICY, "messages": messages(), "extra_body": {"compression": {"retention": 0.25}}}
    return client.chat.completions.create(**(request | changes))


def test_the_models_answer_from_all_tokens_is_right(client):
    answers = []
    for place in range(6):
        text, right = question_about(place)
        whole = ask(client, model=BASE, messages=messages(text, data_url(clip_bytes(place))), extra_body={})
        answers.append(whole.choices[0].message.content.strip() == right)
    assert sum(answers) >= 5


def test_a_question_is_answered_from_the_tokens_that_the_library_keeps(client, tmp_path):
    text, _ = question_about()
    (tmp_path / "clip.mp4").write_bytes(clip_bytes())
    compressor = Compressor.from_pretrained(policy_folder(), "embedded")
    clip = compressor(tmp_path / "clip.mp4", text, retention=0.25)
    completion = ask(client)
    assert completion.choices[0].message.content == clip.answer(max_new_tokens=8)
    assert completion.choices[0].finish_reason == "stop"
    usage = completion.usage
    assert usage.prompt_tokens == clip.prompt_tokens()
    assert usage.prompt_tokens_before == clip.prompt_tokens(all_tokens=True)
    assert (usage.video_tokens, usage.video_tokens_kept) == (clip.encoded.grid.tokens, len(clip.kept))
    assert usage.compression == {"method": "policy", "retention": 0.25, "positions": "original"}
    assert usage.timings["total_ms"] > usage.timings["generate_ms"] >= usage.timings["first_token_ms"] > 0


def test_compress_gives_the_librarys_tokens_scores_and_budgets(service, tmp_path):
    text, _ = question_about()
    (tmp_path / "clip.mp4").write_bytes(clip_bytes())
    clip = Compressor.from_pretrained(policy_folder(), "embedded")(tmp_path / "clip.mp4", text, retention=0.1)
    body = {"model": POLICY, "messages": messages(text), "compression": {"retention": 0.1}, "include": ["embeddings"]}
    answer = post(service, "/v1/compress", body).json()
    assert answer["kept"] == clip.kept.tolist()
    assert answer["frame_budgets"] == clip.kept_per_frame().tolist()
    assert answer["token_scores"] == pytest.approx(clip.token_scores.tolist(), abs=1e-5)
    assert answer["grid"] == dict(zip(("frames", "rows", "columns"), clip.encoded.grid, strict=True))
    tensors = load_tensors(base64.b64decode(answer["embeddings"]))
    assert torch.allclose(tensors["embeddings"], clip.encoded.features[clip.kept])
    assert answer["prompt_embeds"] is None


def test_compress_sends_frames_and_prompt_embeds_on_request(service):
    body = {"model": POLICY, "messages": messages(), "compression": {"positions": "contiguous"}}
    answer = post(service, "/v1/compress", body | {"include": ["frames", "prompt_embeds"]}).json()
    assert len(answer["frames"]) == 8
    assert base64.b64decode(answer["frames"][0].partition(",")[2])[:2] == b"\xff\xd8"
    rows = torch.load(io.BytesIO(base64.b64decode(answer["prompt_embeds"])), weights_only=True)
    assert rows.shape == (answer["usage"]["prompt_tokens"], embedded_llm().hidden_size)
    gaps = post(service, "/v1/compress", body | {"compression": {}, "include": ["prompt_embeds"]})
    assert (gaps.status_code, gaps.json()["error"]["param"]) == (422, "compression.positions")


def test_a_streamed_answer_is_the_whole_one(client):
    whole = ask(client, max_tokens=5)
    stream = ask(client, max_tokens=5, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert "".join(part.choices[0].delta.content or "" for part in chunks if part.choices) == (
        whole.choices[0].message.content
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [part.choices[0].finish_reason for part in chunks if part.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
    assert chunks[-1].usage.timings["total_ms"] > 0


def test_a_stream_has_openais_form(service):
    body = {"model": POLICY, "messages": messages(), "stream": True, "stream_options": {"include_usage": True}}
    answer = post(service, "/v1/chat/completions", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-accel-buffering"] == "no"
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert len({(chunk["id"], chunk["created"], chunk["object"], chunk["model"]) for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1]["choices"] == []
    assert ["usage" in chunk for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_a_stream_without_include_usage_has_none(client):
    assert all(part.usage is None for part in ask(client, stream=True))


def test_a_bad_request_to_stream_is_refused_with_its_status(client):
    with pytest.raises(openai.UnprocessableEntityError):
        ask(client, stream=True, messages=messages(url=data_url(b"no video")))


def test_length_stop_and_seed_are_kept(client):
    options = {"max_tokens": 1, "temperature": 1.5, "seed": 4}
    assert ask(client, **options).choices[0].message.content == ask(client, **options).choices[0].message.content
    assert ask(client, max_tokens=1).usage.completion_tokens <= 1
    answer = ask(client).choices[0].message.content
    stopped = ask(client, stop=answer.strip())
    assert answer.strip() not in stopped.choices[0].message.content
    assert ask(client, max_completion_tokens=2).usage.completion_tokens <= 2


def test_the_number_of_frames_is_asked_for_as_vllm_and_sglang_do(client):
    def frames(**request) -> int:
        grid_tokens = 36
        return ask(client, **request).usage.video_tokens // grid_tokens

    def vllm(**video) -> dict:
        return {"media_io_kwargs": {"video": video}}

    assert frames() == 8
    assert frames(extra_body=vllm(num_frames=4)) == 4
    assert frames(extra_body=vllm(fps=2)) == 4  # the clip lasts two seconds
    assert frames(extra_body=vllm(num_frames=10**6)) == 64  # clamped
    assert frames(messages=messages(fps=1.0)) == 2
    assert frames(messages=messages(max_frames=3)) == 3
    assert frames(messages=messages(url=frames_url(*[jpeg()] * 5), num_frames=-1)) == 5


def test_models_are_listed(client):
    listed = {model.id: model for model in client.models.list()}
    assert list(listed) == [POLICY, BASE]
    assert listed[POLICY].policy == "late"
    assert "policy" in listed[POLICY].methods
    assert listed[BASE].policy is None


def test_errors_have_openais_form(client):
    with pytest.raises(openai.NotFoundError) as missing:
        ask(client, model="gpt-4o")
    assert (missing.value.code, missing.value.type, missing.value.param) == (
        "model_not_found",
        "not_found_error",
        "model",
    )
    with pytest.raises(openai.UnprocessableEntityError) as bad:
        ask(client, extra_body={"compression": {"retention": 1.5}})
    assert bad.value.type == "invalid_request_error"
    assert bad.value.param == "body.compression.retention".removeprefix("body.")


def test_probes_and_page_need_no_key(service):
    for path in ("/healthz", "/readyz", "/", "/page/page.js", "/samples", "/samples/1.mp4", "/openapi.json"):
        assert get(service.url + path).status_code == 200, path
    assert get(f"{service.url}/readyz").json() == {"status": "ready"}


@pytest.mark.parametrize(
    ("models", "status", "said"),
    [
        (overloaded("the queue is full", 2), 200, "busy"),  # it empties
        (ApiError(503, "unavailable", "the service has not started"), 503, "not ready"),
        ([], 503, "not ready"),
    ],
)
def test_readiness_tells_a_full_queue_from_a_service_that_is_not_there(service, monkeypatch, models, status, said):
    async def answer():
        if isinstance(models, ApiError):
            raise models
        return models

    monkeypatch.setattr(service.backend, "models", answer)
    ready = get(f"{service.url}/readyz")
    assert (ready.status_code, ready.json()) == (status, {"status": said})


def test_a_draining_replica_is_not_ready_and_takes_nothing_new(service, monkeypatch):
    monkeypatch.setattr(service.admission, "draining", True)
    assert get(f"{service.url}/readyz").json() == {"status": "draining"}
    refused = post(service, "/v1/chat/completions", {"model": POLICY, "messages": messages()})
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
    assert "retry-after" in refused.headers
    assert get(f"{service.url}/healthz").status_code == 200


def test_metrics_count_tokens_stages_and_errors(service, client):
    def value(name: str, **labels: str) -> float:
        return service.telemetry.registry.get_sample_value(name, {"replica": "test"} | labels) or 0.0

    before = {part: value("cacovid_video_tokens_total", part=part) for part in ("in", "kept")}
    errors = value("cacovid_errors_total", code="unreadable_video")
    usage = ask(client).usage
    with pytest.raises(openai.UnprocessableEntityError):
        ask(client, messages=messages(url=data_url(b"no video")))
    assert value("cacovid_video_tokens_total", part="in") - before["in"] == usage.video_tokens
    assert value("cacovid_video_tokens_total", part="kept") - before["kept"] == usage.video_tokens_kept
    assert value("cacovid_errors_total", code="unreadable_video") == errors + 1
    wait_until(lambda: value("cacovid_in_flight") == 0)  # counted after the last byte went out

    def metrics() -> str:
        return get(f"{service.url}/metrics", headers={"Authorization": f"Bearer {KEY}"}).text

    wait_until(lambda: 'cacovid_requests_total{replica="test",route="/v1/chat/completions",status="422"}' in metrics())
    assert 'cacovid_stage_seconds_bucket{le="0.01",replica="test",stage="policy"}' in metrics()


def test_a_fault_in_the_middle_of_a_stream_is_an_event(service, client, monkeypatch):
    async def breaking(request, videos):
        yield Delta("first is lost as the head")
        yield Delta("red")
        yield Failed(ApiError(503, "replica_died", "the replica died"))

    monkeypatch.setattr(service.backend, "stream", breaking)
    with pytest.raises(openai.APIError, match="the replica died"):
        list(ask(client, stream=True))


def test_an_answer_that_takes_too_long_is_given_up():
    config = service_config(api={"request_timeout_s": 0.001})
    with running(config) as service:
        answer = post(service, "/v1/chat/completions", {"model": POLICY, "messages": messages()})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "timeout")


def test_the_example_of_the_documentation_runs(service, tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
    example = text.partition("```python\n")[2].partition("```")[0]
    changes = {"http://127.0.0.1:8000": service.url, 'api_key="none"': f'api_key="{KEY}"', '"cacovid"': f'"{POLICY}"'}
    for shown, here in changes.items():
        assert shown in example
        example = example.replace(shown, here)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").write_bytes(clip_bytes())
    exec(compile(example, "docs/serving.md", "exec"), {})
    assert "28 of 288 video tokens read" in capsys.readouterr().out
