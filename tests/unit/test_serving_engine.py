"""The engine without Ray: batching, streaming, stops, policies, and other engines' embeddings."""

import asyncio
import io
import math
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors

from cacovid.config import ModelConfig, PolicyConfig, TrainConfig
from cacovid.errors import UserError
from cacovid.model_policy import policy_for
from cacovid.models.adapter import VideoLLM
from cacovid.models.loading import load_video_llm
from cacovid.selection import budget
from serving.config import EngineConfig
from serving.engine.batcher import Batcher
from serving.engine.decoding import RowSampler, TextAssembler
from serving.engine.engine import Engine, Job
from serving.engine.records import (
    Answer,
    Compressed,
    Compression,
    Decoding,
    Delta,
    EngineRequest,
    Event,
    Failed,
    Finished,
    Started,
)
from serving.media.records import Clip
from tests.tiny_models import BUILDERS, save_tiny_model
from tests.waiting import PATIENCE_S, until

QUESTION = "what is the colour of the circle?\nA. red\nB. blue"
WORDY = "what is the colour of the circle where the square is left of the triangle before frame three?"


def clip_of(seed: int, frames: int = 8) -> Clip:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 48, 48, 3), dtype=np.uint8)
    return Clip(pixels, tuple(map(float, range(frames))), float(frames), 1.0, f"clip {seed} {frames}", 0.0, 0.0)


def asks(question: str = QUESTION, videos: int = 1, **changes) -> EngineRequest:
    content = [*({"type": "video"} for _ in range(videos)), {"type": "text", "text": question}]
    request = EngineRequest("trained", ({"role": "user", "content": content},), decoding=Decoding(max_tokens=6))
    return replace(request, **changes)


def compresses(question: str = QUESTION, **changes) -> EngineRequest:
    return asks(question, decoding=None, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serving-engine")


def load(kind: str, folder) -> VideoLLM:
    path = folder / kind
    return load_video_llm(ModelConfig(path=str(path if path.exists() else save_tiny_model(kind, path)), num_frames=8))


def save_policy(llm: VideoLLM, folder, seed: int = 0, kind: str = "late") -> str:
    config = TrainConfig(policy=PolicyConfig(kind=kind), run={"seed": seed})
    policy_for(llm, config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llm(folder):
    return load("llava_onevision", folder)


@pytest.fixture
def engine(llm, folder):
    return engine_of(llm, folder)


def engine_of(llm: VideoLLM, folder, **config) -> Engine:
    engine = Engine(llm, EngineConfig(**config), "plain")
    engine.load_policies({"trained": save_policy(llm, folder / f"policy-{llm.kind}")})
    return engine


def run(engine: Engine, *asked: tuple[EngineRequest, list[Clip]]) -> list[list[Event]]:
    """One batch; the events of each request."""
    events: list[list[Event]] = [[] for _ in asked]
    engine.run([Job(request, clips, own.append) for (request, clips), own in zip(asked, events, strict=True)])
    return events


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def one(engine: Engine, request: EngineRequest, clip: Clip | None = None) -> list[Event]:
    return run(engine, (request, [clip or clip_of(0)]))[0]


def failure(events: list[Event]) -> Failed:
    assert isinstance(events[-1], Failed), events
    return events[-1]


@pytest.mark.parametrize("kind", sorted(BUILDERS))
def test_a_batch_of_prompts_of_different_lengths_answers_as_each_alone(kind, folder):
    """Left padding, joined tower outputs and per-request positions, for every family of models."""
    engine = engine_of(load(kind, folder), folder)
    asked = [
        (asks(QUESTION, compression=Compression(0.2)), [clip_of(0)]),
        (asks(WORDY, compression=Compression(0.2, positions="contiguous")), [clip_of(1)]),
        (asks(WORDY, compression=Compression(0.2, method="uniform")), [clip_of(0)]),
        (asks("where?", compression=Compression(0.5)), [clip_of(1)]),
    ]
    together = [text_of(events) for events in run(engine, *asked)]
    alone = [text_of(run(engine, each)[0]) for each in asked]
    assert together == alone
    assert len(set(alone)) > 1, "the answers depend on the question"


def test_the_answer_is_the_librarys(llm, engine):
    """The same tokens kept and the same greedy text as the adapter gives, which test_models.py proves right."""
    events = one(engine, asks(compression=Compression(0.2)))
    compressed = one(engine, compresses(compression=Compression(0.2)))[0]
    encoded = llm.encode(clip_of(0).frames, QUESTION)
    expected = llm.answer(encoded, torch.tensor([compressed.kept]), 6, "original").texts[0]
    assert text_of(events) == expected
    started, finished = events[0], events[-1]
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.completion_tokens) == ("length", 6)
    assert finished.report.video_tokens == encoded.grid.tokens
    assert finished.report.video_tokens_kept == budget(0.2, encoded.grid.tokens)
    assert finished.report.prompt_tokens == encoded.length
    assert finished.report.prompt_tokens - finished.report.prompt_tokens_kept == encoded.grid.tokens - len(
        compressed.kept
    )
    assert finished.report.timings.generate >= finished.report.timings.first_token > 0


def test_text_arrives_token_by_token(engine):
    events = one(engine, asks(decoding=Decoding(max_tokens=9)))
    assert sum(isinstance(event, Delta) for event in events) > 1


def test_every_request_of_a_batch_has_its_own_length(engine):
    lengths = [1, 5, 9]
    asked = [(asks(decoding=Decoding(max_tokens=length)), [clip_of(0)]) for length in lengths]
    assert [events[-1].completion_tokens for events in run(engine, *asked)] == lengths


def test_a_stop_string_ends_the_answer_before_it(engine):
    whole = text_of(one(engine, asks(decoding=Decoding(max_tokens=12))))
    stop = whole[5:8]
    events = one(engine, asks(decoding=Decoding(max_tokens=12, stop=("never there", stop))))
    assert text_of(events) == whole[: whole.index(stop)]
    assert events[-1].reason == "stop"


def test_an_end_token_ends_the_answer(llm, engine):
    ends = llm.end_tokens
    first = one(engine, asks(decoding=Decoding(max_tokens=1)))
    token = llm.processor.tokenizer.encode(text_of(first), add_special_tokens=False)[-1]
    llm.end_tokens = [*ends, token]
    try:
        events = one(engine, asks())
    finally:
        llm.end_tokens = ends
    assert (text_of(events), events[-1].reason, events[-1].completion_tokens) == ("", "stop", 0)


def test_draws_depend_on_the_seed_alone(engine):
    def drawn(seed: int, *others: EngineRequest) -> str:
        request = asks(decoding=Decoding(max_tokens=8, temperature=1.0, seed=seed))
        return text_of(run(engine, (request, [clip_of(0)]), *((other, [clip_of(1)]) for other in others))[0])

    assert drawn(1) == drawn(1) == drawn(1, asks(WORDY), asks(decoding=Decoding(max_tokens=3, temperature=2.0)))
    assert len({drawn(seed) for seed in range(6)}) > 1


def test_draws_follow_the_softmax_within_the_nucleus():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64).log()
    draws = 4000
    for top_p, temperature, expected in [
        (1.0, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (0.7, 1.0, [0.625, 0.375, 0.0, 0.0]),
        (1.0, 0.5, [25 / 36.5, 9 / 36.5, 2.25 / 36.5, 0.25 / 36.5]),
    ]:
        rows = [Decoding(1, temperature, top_p, (), seed) for seed in range(draws)]
        tokens = RowSampler(rows)(torch.zeros(draws, 1), logits.expand(draws, -1)).argmax(1)
        counts = torch.bincount(tokens, minlength=4).tolist()
        for count, share in zip(counts, expected, strict=True):
            assert abs(count / draws - share) <= 4 * math.sqrt(share * (1 - share) / draws)


def test_greedy_rows_are_left_as_they_are():
    logits = torch.randn(2, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(RowSampler([Decoding(1), Decoding(1)])(torch.zeros(2, 1), logits), logits)


class Letters:
    """A tokenizer of bytes."""

    def decode(self, tokens: list[int], skip_special_tokens: bool) -> str:
        return bytes(tokens).decode(errors="replace")


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("hello world", (), "hello world"),
        ("hello world", ("wor",), "hello "),
        ("hello world", ("lo w", "xyz"), "hel"),
        ("aab", ("ab",), "a"),
        ("ababac", ("abac",), "ab"),
        ("abab", ("abac",), "abab"),
        ("grüße ☃ 雪", (), "grüße ☃ 雪"),
        ("a☃b", ("☃",), "a"),
        ("", ("x",), ""),
    ],
)
def test_text_is_put_together_across_tokens(text, stop, expected):
    assembler = TextAssembler(Letters(), stop)
    shown = ""
    for token in text.encode():
        shown += assembler.push(token)
        if assembler.stopped:
            break
        assert not any(each in shown for each in stop)
    if not assembler.stopped:
        shown += assembler.finish()
    assert shown == expected
    assert assembler.stopped == (expected != text)


@pytest.mark.parametrize("method", ["policy", "uniform", "random", "divprune", "text-cosine", "all"])
def test_every_method_keeps_its_budget(engine, method):
    retention = None if method == "all" else 0.25
    compressed = one(engine, compresses(compression=Compression(retention, method)))[0]
    assert isinstance(compressed, Compressed)
    tokens = compressed.report.video_tokens
    assert len(compressed.kept) == (tokens if method == "all" else budget(0.25, tokens))
    assert compressed.kept == sorted(set(compressed.kept))
    assert sum(compressed.frame_budgets) == len(compressed.kept)
    assert (compressed.token_scores is not None) == (method == "policy")


def test_a_model_without_policy_keeps_all_tokens_or_uses_a_method_that_needs_none(engine):
    whole = one(engine, compresses(model="plain"))[0]
    assert whole.report.method == "all"
    assert len(whole.kept) == whole.report.video_tokens
    assert failure(one(engine, asks(model="plain", compression=Compression(method="policy")))).error.status == 422
    assert one(engine, compresses(model="plain", compression=Compression(0.1, "uniform")))[0].report.retention == 0.1


def test_an_unknown_model_is_not_found(engine):
    assert failure(one(engine, asks(model="other"))).error.status == 404


def test_a_question_without_video_is_answered_and_cannot_be_compressed(engine):
    events = run(engine, (asks("what is red?", videos=0), []), (compresses(videos=0), []))
    assert isinstance(events[0][-1], Finished)
    assert events[0][-1].report.video_tokens == 0
    assert failure(events[1]).error.status == 422


def test_several_turns_and_clips_are_read(engine):
    messages = (
        {"role": "system", "content": [{"type": "text", "text": "the user"}]},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "and where?"}]},
    )
    request = EngineRequest("trained", messages, decoding=Decoding(max_tokens=2))
    events = run(engine, (request, [clip_of(0), clip_of(1, frames=4)]))[0]
    assert isinstance(events[-1], Finished)
    assert events[-1].report.grid[0] == 12


def test_control_tokens_in_the_text_are_refused(llm, engine):
    for token in ("<|im_start|>", "<video>", "<image>", llm.processor.tokenizer.eos_token):
        assert "control token" in failure(one(engine, asks(f"what {token} is?"))).error.message


def test_a_prompt_or_answer_beyond_the_models_positions_is_refused(llm, folder):
    engine = engine_of(llm, folder, max_tokens=10**6)
    assert failure(one(engine, asks(decoding=Decoding(max_tokens=5000)))).error.code == "context_length_exceeded"
    short = engine_of(llm, folder, max_prompt_tokens=50)
    assert failure(one(short, asks())).error.code == "context_length_exceeded"


def test_a_request_that_waited_too_long_is_given_up(engine):
    assert failure(one(engine, asks(time_left_s=-1.0))).error.status == 503


def test_a_bad_request_does_not_harm_its_batch(engine):
    asked = [(asks(), [clip_of(0)]), (asks(model="other"), [clip_of(0)]), (asks(WORDY), [clip_of(1)])]
    events = run(engine, *asked)
    assert [type(each[-1]) for each in events] == [Finished, Failed, Finished]
    assert text_of(events[0]) == text_of(one(engine, asks()))


def test_the_tower_runs_once_for_a_clip_asked_about_twice(llm, engine, monkeypatch):
    watched = []
    watch = llm.watch
    monkeypatch.setattr(llm, "watch", lambda frames, fps: watched.append(1) or watch(frames, fps=fps))
    run(engine, (asks(), [clip_of(3)]), (asks(WORDY), [clip_of(3)]))
    one(engine, asks(), clip_of(3))
    assert len(watched) == 1


def test_small_batches_are_cut_by_their_tokens(llm, folder, monkeypatch):
    sizes = []
    generate = llm.model.generate
    monkeypatch.setattr(
        llm.model, "generate", lambda **kwargs: sizes.append(len(kwargs["input_ids"])) or generate(**kwargs)
    )
    run(engine_of(llm, folder, max_batch_tokens=120), *[(asks(), [clip_of(0)])] * 5)
    assert sum(sizes) == 5
    assert 1 < max(sizes) < 5


def test_policies_change_without_touching_the_model(llm, engine, folder):
    weights = llm.model.lm_head.weight.data_ptr()
    before = one(engine, compresses())[0].kept
    other = save_policy(llm, folder / "policy-other", seed=5)
    engine.load_policies({"trained": other, "second": save_policy(llm, folder / "policy-again")})
    assert one(engine, compresses())[0].kept != before
    assert one(engine, compresses(model="second"))[0].kept == before
    assert [card.id for card in engine.models()] == ["trained", "second", "plain"]
    assert llm.model.lm_head.weight.data_ptr() == weights


def test_a_policy_for_another_model_is_refused_and_the_old_ones_stay(llm, engine, folder):
    foreign = save_policy(load("qwen2_5_vl", folder), folder / "policy-foreign")
    with pytest.raises(UserError, match="was trained for the model"):
        engine.load_policies({"new": foreign})
    assert [card.id for card in engine.models()] == ["trained", "plain"]


def test_kept_embeddings_are_the_models(llm, engine):
    compressed = one(engine, compresses(extras=frozenset({"embeddings"})))[0]
    tensors = load_tensors(compressed.embeddings)
    features = llm.encode(clip_of(0).frames, QUESTION).features
    assert torch.equal(tensors["indices"], torch.tensor(compressed.kept))
    assert torch.equal(tensors["embeddings"], features[tensors["indices"]])


@pytest.mark.parametrize("kind", sorted(BUILDERS))
def test_prompt_embeds_give_the_same_logits_or_are_refused(kind, folder):
    llm = load(kind, folder)
    engine = engine_of(llm, folder)
    wish = Compression(0.2, positions="contiguous")
    event = one(engine, compresses(compression=wish, extras=frozenset({"prompt_embeds"})))[0]
    if kind in ("qwen2_5_vl", "qwen3_vl"):
        assert failure([event]).error.status == 422
        assert "M-RoPE" in failure([event]).error.message
        return
    embeds = torch.load(io.BytesIO(event.prompt_embeds), weights_only=True)
    encoded = llm.encode(clip_of(0).frames, QUESTION)
    expected = llm.first_logits(encoded, torch.tensor([event.kept]), "contiguous")
    with torch.inference_mode():
        decoder = llm.model.get_decoder()
        hidden = decoder(inputs_embeds=embeds[None], use_cache=False).last_hidden_state[:, -1]
        logits = llm.model.get_output_embeddings()(hidden)
    assert torch.allclose(logits, expected, atol=1e-5)


def test_prompt_embeds_with_gaps_between_positions_are_refused(engine):
    events = one(engine, compresses(compression=Compression(0.2, positions="original"), extras={"prompt_embeds"}))
    assert failure(events).error.param == "compression.positions"


def with_batcher(engine: Engine, work, **config):
    async def through():
        batcher = Batcher(engine, EngineConfig(**config))
        batcher.start()
        try:
            return await work(batcher)
        finally:
            await batcher.stop()

    return asyncio.run(through())


def test_requests_that_wait_together_are_answered_together(llm, engine, monkeypatch):
    sizes = []
    run_batch = engine.run
    monkeypatch.setattr(engine, "run", lambda jobs: sizes.append(len(jobs)) or run_batch(jobs))

    async def work(batcher: Batcher) -> list[Answer]:
        return await asyncio.gather(*(batcher.answer(asks(), [clip_of(0)]) for _ in range(7)))

    answers = with_batcher(engine, work, max_batch=4)
    assert {answer.text for answer in answers} == {text_of(one(engine, asks()))}
    assert sizes[:2] == [4, 3]


def test_a_failing_batch_is_answered_with_an_error_and_the_next_one_runs(engine, monkeypatch, caplog):
    run_batch = engine.run

    def broken(jobs):
        monkeypatch.setattr(engine, "run", run_batch)
        raise RuntimeError("secret detail")

    monkeypatch.setattr(engine, "run", broken)

    async def work(batcher: Batcher):
        return await batcher.answer(asks(), [clip_of(0)]), await batcher.answer(asks(), [clip_of(0)])

    first, second = with_batcher(engine, work)
    assert (first.error.status, "secret" in first.error.message) == (500, False)
    assert isinstance(second, Answer)


def test_leaving_early_ends_the_generation(llm, engine, monkeypatch):
    steps = []
    forward = llm.model.forward
    monkeypatch.setattr(llm.model, "forward", lambda *args, **kwargs: steps.append(1) or forward(*args, **kwargs))

    async def work(batcher: Batcher) -> Answer:
        events = batcher.events(asks(decoding=Decoding(max_tokens=1000)), [clip_of(0)])
        async for event in events:
            if isinstance(event, Delta):
                break
        await events.aclose()
        return await batcher.answer(asks(), [clip_of(0)])

    assert isinstance(with_batcher(engine, work), Answer)
    assert len(steps) < 500


def test_a_stalled_batch_is_a_fault(engine, monkeypatch):
    release = threading.Event()
    run_batch = engine.run
    monkeypatch.setattr(engine, "run", lambda jobs: release.wait(PATIENCE_S) and run_batch(jobs))

    async def work(batcher: Batcher):
        assert batcher.fault() is None
        task = asyncio.create_task(batcher.answer(asks(), [clip_of(0)]))
        await until(batcher.fault)
        fault = batcher.fault()
        release.set()
        await task
        await until(lambda: batcher.fault() is None)  # the batch ends just after its last event
        return fault

    assert with_batcher(engine, work, stall_s=0.1) == "a batch has lasted longer than engine.stall_s=0.1"
