"""The engine without Ray: batches, methods, policies, refusals."""

from dataclasses import replace

import pytest
import torch

from cacovid.errors import UserError
from cacovid.methods.selection import budget
from serving.engine.prompts import TRAINING_FREE, Job
from serving.engine.records import (
    Compressed,
    CompressionWish,
    Decoding,
    Delta,
    EngineRequest,
    Event,
    Failed,
    Finished,
    Started,
    TokenLogprob,
)
from serving.media.records import Clip
from tests.support.serving_engine import (
    QUESTION,
    WORDY,
    asks,
    clip_of,
    compresses,
    engine_of,
    failure,
    one,
    run,
    text_of,
    tiny_llm,
    tiny_policy,
)
from tests.support.tiny_models import BUILDERS


def mixed() -> list[tuple[EngineRequest, list[Clip]]]:
    """Prompts that keep from one token to all, in both position modes, greedy and drawn, of several lengths."""
    told = Decoding(max_tokens=12, logprobs=3)
    drawn = replace(told, temperature=1.5, top_p=0.9, seed=7)
    short = replace(told, max_tokens=3, frequency_penalty=1.0)
    return [
        (asks(QUESTION, compression=CompressionWish(retention=0.2), decoding=told), [clip_of(0)]),
        (asks(WORDY, compression=CompressionWish(retention=0.9, positions="contiguous"), decoding=drawn), [clip_of(1)]),
        (asks(WORDY, compression=CompressionWish(retention=0.01, method="uniform"), decoding=told), [clip_of(0)]),
        (asks("where?", model="plain", decoding=short), [clip_of(1)]),
        (asks("what is red?", videos=0, decoding=drawn), []),
        (asks("where?", compression=CompressionWish(retention=0.4), decoding=drawn), [clip_of(1)]),
    ]


def tokens_of(events: list[Event]) -> list[TokenLogprob]:
    return [token for event in events if isinstance(event, Delta) for token in event.tokens]


def assert_same(together: list[Event], alone: list[Event]) -> None:
    """Text for text and token for token, log-probabilities of the alternatives included."""
    assert text_of(together) == text_of(alone)
    assert together[-1].reasons == alone[-1].reasons
    pairs = list(zip(tokens_of(together), tokens_of(alone), strict=True))
    assert pairs
    for one_token, other in pairs:
        assert one_token.text == other.text
        likely = [(mine.logprob, theirs.logprob) for mine, theirs in zip(one_token.top, other.top, strict=True)]
        for mine, theirs in [(one_token.logprob, other.logprob), *likely]:
            assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("kind", sorted(BUILDERS))
def test_prompts_of_different_kept_counts_are_answered_together_as_each_alone(kind):
    """Left padding, joined tower outputs, deepstack levels and own positions, for every family of models."""
    engine, asked = engine_of(kind), mixed()
    alone = [run(engine, each)[0] for each in asked]
    for together, lone in zip(run(engine, *asked), alone, strict=True):
        assert_same(together, lone)
    assert len({text_of(events) for events in alone}) > 1, "the answers depend on the question"


@pytest.mark.parametrize("kind", sorted(BUILDERS))
def test_requests_that_join_between_two_tokens_are_answered_as_alone(kind):
    """One comes after each token of the others, shorter and longer ones, while answered ones leave."""
    engine, asked = engine_of(kind), mixed()
    events: list[list[Event]] = [[] for _ in asked]
    jobs = iter([Job(*each, own.append) for each, own in zip(asked, events, strict=True)])
    engine.run([next(jobs)], lambda: [job for job in [next(jobs, None)] if job])
    for together, each in zip(events, asked, strict=True):
        assert_same(together, run(engine, each)[0])


def test_prompts_of_one_length_are_read_in_one_pass_and_all_answers_are_written_together(llm, engine, monkeypatch):
    shapes = []
    forward = llm.model.forward
    monkeypatch.setattr(
        llm.model, "forward", lambda **given: shapes.append(tuple(given["input_ids"].shape)) or forward(**given)
    )
    like = asks(compression=CompressionWish(retention=0.2), decoding=Decoding(max_tokens=3))
    run(
        engine,
        (like, [clip_of(0)]),
        (replace(like, model="plain", compression=CompressionWish()), [clip_of(1)]),
        (like, [clip_of(1)]),
    )
    (few, short), (one_row, long), *steps = shapes
    assert (few, one_row) == (2, 1)
    assert short < long
    assert steps == [(3, 1), (3, 1)]


def test_the_answer_is_the_librarys(llm, engine):
    """The same tokens kept and the same greedy text as the adapter gives, which test_models.py proves right."""
    events = one(engine, asks(compression=CompressionWish(retention=0.2)))
    compressed = one(engine, compresses(compression=CompressionWish(retention=0.2)))[0]
    encoded = llm.encode(llm.watch(clip_of(0).frames), QUESTION)
    expected = llm.answer(encoded, torch.tensor([compressed.kept]), 6).texts[0]
    assert text_of(events) == expected
    started, finished = events[0], events[-1]
    assert isinstance(started, Started)
    assert isinstance(finished, Finished)
    assert (finished.reasons, finished.completion_tokens) == (("length",), 6)
    assert finished.report.video_tokens == encoded.grid.tokens
    assert finished.report.video_tokens_kept == budget(0.2, encoded.grid.tokens)
    assert finished.report.prompt_tokens == encoded.length
    assert finished.report.prompt_tokens - finished.report.prompt_tokens_kept == encoded.grid.tokens - len(
        compressed.kept
    )
    assert finished.report.timings.generate >= finished.report.timings.first_token > 0


@pytest.mark.parametrize("kind", ["llava_onevision", "qwen2_5_vl", "qwen3_vl"])
def test_an_answer_with_penalties_is_that_of_a_slow_loop(kind):
    """The whole prompt anew for every token, without cache; penalties by OpenAI's formula."""
    llm, engine = tiny_llm(kind), engine_of(kind)
    wish = CompressionWish(retention=0.3, method="uniform")
    decoding = Decoding(max_tokens=10, presence_penalty=0.7, frequency_penalty=1.3, logprobs=0)
    events = one(engine, asks(compression=wish, decoding=decoding))
    kept = one(engine, compresses(compression=wish))[0].kept
    given = llm.pack(llm.encode(llm.watch(clip_of(0).frames), QUESTION), torch.tensor([kept]))
    answer: list[int] = []
    for _ in range(decoding.max_tokens):
        with torch.inference_mode():
            logits = llm.model(**given, use_cache=False).logits[0, -1].tolist()
        for token in set(answer):
            logits[token] -= 0.7 + 1.3 * answer.count(token)
        answer.append(logits.index(max(logits)))
        given["input_ids"] = torch.cat([given["input_ids"], torch.tensor([answer[-1:]])], dim=1)
        given["attention_mask"] = torch.ones_like(given["input_ids"])
        positions = given["position_ids"]
        given["position_ids"] = torch.cat([positions, positions[..., -1:] + 1], dim=-1)
    words = [llm.processor.tokenizer.decode([token]) for token in answer]
    assert [token.text for token in tokens_of(events)] == words


def test_text_arrives_token_by_token(engine):
    events = one(engine, asks(decoding=Decoding(max_tokens=9)))
    assert sum(isinstance(event, Delta) for event in events) > 1


def test_every_request_of_a_batch_has_its_own_length(engine):
    lengths = [1, 5, 9]
    asked = [(asks(decoding=Decoding(max_tokens=length)), [clip_of(0)]) for length in lengths]
    assert [events[-1].completion_tokens for events in run(engine, *asked)] == lengths


@pytest.mark.parametrize("method", ["policy", "all", *TRAINING_FREE])
def test_every_method_keeps_its_budget(engine, method):
    retention = None if method == "all" else 0.25
    compressed = one(engine, compresses(compression=CompressionWish(retention=retention, method=method)))[0]
    assert isinstance(compressed, Compressed)
    tokens = compressed.report.video_tokens
    assert len(compressed.kept) == (tokens if method == "all" else budget(0.25, tokens))
    assert compressed.kept == sorted(set(compressed.kept))
    assert sum(compressed.frame_budgets) == len(compressed.kept)
    assert (compressed.token_scores is not None) == (method == "policy")


def test_a_budget_that_a_methods_definition_does_not_cover_is_refused(engine):
    wish = CompressionWish(retention=0.05, method="evs")
    error = failure(one(engine, compresses(compression=wish))).error
    assert (error.status, error.param) == (422, "compression.retention")
    assert "EVS keeps the first frame" in error.message
    assert set(TRAINING_FREE) == {"divprune", "vidcom2", "evs", "text-cosine", "uniform", "random"}


def test_a_model_without_policy_keeps_all_tokens_or_uses_a_method_that_needs_none(engine):
    whole = one(engine, compresses(model="plain"))[0]
    assert whole.report.method == "all"
    assert len(whole.kept) == whole.report.video_tokens
    assert failure(one(engine, asks(model="plain", compression=CompressionWish(method="policy")))).error.status == 422
    wish = CompressionWish(retention=0.1, method="uniform")
    assert one(engine, compresses(model="plain", compression=wish))[0].report.retention == 0.1


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


def test_a_prompt_or_answer_beyond_the_models_positions_is_refused():
    engine = engine_of(max_tokens=10**6)
    assert failure(one(engine, asks(decoding=Decoding(max_tokens=5000)))).error.code == "context_length_exceeded"
    short = engine_of(max_prompt_tokens=50)
    assert failure(one(short, asks())).error.code == "context_length_exceeded"


def test_a_request_that_waited_too_long_is_given_up(engine):
    assert failure(one(engine, asks(time_left_s=-1.0))).error.status == 503


def test_a_bad_request_does_not_harm_its_batch(engine):
    asked = [(asks(), [clip_of(0)]), (asks(model="other"), [clip_of(0)]), (asks(WORDY), [clip_of(1)])]
    events = run(engine, *asked)
    assert [type(each[-1]) for each in events] == [Finished, Failed, Finished]
    assert text_of(events[0]) == text_of(one(engine, asks()))


def test_a_short_answer_does_not_wait_for_the_long_ones_of_its_batch(engine):
    """Its last event comes at its last token, and so do its time and its place in the queue."""
    events = []
    lengths = (2, 40)
    jobs = [
        Job(asks(decoding=Decoding(max_tokens=length)), [clip_of(0)], lambda event, n=length: events.append((n, event)))
        for length in lengths
    ]
    engine.run(jobs)
    (end,) = (place for place, (length, event) in enumerate(events) if length == 2 and isinstance(event, Finished))
    assert sum(isinstance(event, Delta) for _, event in events[end:]) > 20
    short, long = (event.report.timings.generate for _, event in events if isinstance(event, Finished))
    assert short < long


def test_who_leaves_before_there_is_room_takes_none(engine):
    """Its prompt is not read; the one that is being answered goes on."""
    first, second = [], []
    waiting = Job(asks(), [clip_of(0)], second.append)

    def sink(event: Event) -> None:
        first.append(event)
        waiting.cancel()

    engine_of(max_batch_tokens=1).run([Job(asks(), [clip_of(0)], sink), waiting])
    assert isinstance(first[-1], Finished)
    assert [type(event) for event in second] == [Failed]


@pytest.mark.parametrize("step", ["encode", "select"])
def test_a_fault_of_ours_in_one_request_does_not_harm_its_batch(engine, monkeypatch, step, caplog):
    whole = getattr(engine._builder, step)

    def broken(first, *args):
        request = first if isinstance(first, EngineRequest) else first.request
        if request.messages[0]["content"][1]["text"] == WORDY:
            raise RuntimeError("secret detail")
        return whole(first, *args)

    monkeypatch.setattr(engine._builder, step, broken)
    events = run(engine, (asks(), [clip_of(0)]), (asks(WORDY), [clip_of(0)]))
    assert isinstance(events[0][-1], Finished)
    assert (failure(events[1]).error.status, "secret" in failure(events[1]).error.message) == (500, False)
    assert "secret detail" in caplog.text


def test_scores_that_do_not_fit_into_memory_are_refused_and_the_others_of_the_batch_answered(engine, monkeypatch):
    def greedy(prompts):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("serving.engine.engine.run_policy", greedy)
    other = asks(compression=CompressionWish(retention=0.2, method="uniform"))
    events = run(engine, (asks(), [clip_of(0)]), (other, [clip_of(0)]))
    assert (failure(events[0]).error.status, failure(events[0]).error.code) == (503, "overloaded")
    assert isinstance(events[1][-1], Finished)


def test_the_tower_runs_once_for_a_clip_asked_about_twice(llm, engine, monkeypatch):
    watched = []
    watch = llm.watch
    monkeypatch.setattr(llm, "watch", lambda frames, fps: watched.append(1) or watch(frames, fps=fps))
    run(engine, (asks(), [clip_of(3)]), (asks(WORDY), [clip_of(3)]))
    one(engine, asks(), clip_of(3))
    assert len(watched) == 1


def test_small_batches_are_cut_by_their_tokens(llm, monkeypatch):
    sizes = []
    forward = llm.model.forward
    monkeypatch.setattr(llm.model, "forward", lambda **given: sizes.append(len(given["input_ids"])) or forward(**given))
    answers = run(engine_of(max_batch_tokens=120), *[(asks(), [clip_of(0)])] * 5)
    assert all(isinstance(events[-1], Finished) for events in answers)
    assert 1 < max(sizes) < 5


def test_policies_change_without_touching_the_model(llm, engine):
    weights = llm.model.lm_head.weight.data_ptr()
    before = one(engine, compresses())[0].kept
    engine.load_policies({"trained": tiny_policy(seed=5), "second": tiny_policy()})
    assert one(engine, compresses())[0].kept != before
    assert one(engine, compresses(model="second"))[0].kept == before
    assert [card.id for card in engine.models()] == ["trained", "second", "plain"]
    assert llm.model.lm_head.weight.data_ptr() == weights


def test_a_policy_for_another_model_is_refused_and_the_old_ones_stay(engine):
    with pytest.raises(UserError, match="was trained for the model"):
        engine.load_policies({"new": tiny_policy("qwen2_5_vl")})
    assert [card.id for card in engine.models()] == ["trained", "plain"]
