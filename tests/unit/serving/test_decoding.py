"""Drawing tokens, stopping, and text from tokens."""

import math

import pytest
import torch

from serving.engine.decoding import TextAssembler
from serving.engine.drawing import Draws
from serving.engine.records import (
    Decoding,
    EngineRequest,
)
from tests.support.serving_engine import WORDY, asks, clip_of, one, run, text_of


def test_a_stop_string_ends_the_answer_before_it(engine):
    whole = text_of(one(engine, asks(decoding=Decoding(max_tokens=12))))
    stop = whole[5:8]
    events = one(engine, asks(decoding=Decoding(max_tokens=12, stop=("never there", stop))))
    assert text_of(events) == whole[: whole.index(stop)]
    assert events[-1].reasons == ("stop",)


def test_an_end_token_ends_the_answer(llm, engine):
    ends = llm.end_tokens
    first = one(engine, asks(decoding=Decoding(max_tokens=1)))
    token = llm.processor.tokenizer.encode(text_of(first), add_special_tokens=False)[-1]
    llm.end_tokens = [*ends, token]
    try:
        events = one(engine, asks())
    finally:
        llm.end_tokens = ends
    assert (text_of(events), events[-1].reasons, events[-1].completion_tokens) == ("", ("stop",), 0)


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
        rows = [Draws(Decoding(1, temperature, top_p, (), seed)) for seed in range(draws)]
        tokens = torch.stack([row.scores(logits, 0).argmax() for row in rows])
        counts = torch.bincount(tokens, minlength=4).tolist()
        for count, share in zip(counts, expected, strict=True):
            assert abs(count / draws - share) <= 4 * math.sqrt(share * (1 - share) / draws)


def test_greedy_logits_are_left_as_they_are():
    logits = torch.randn(7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Draws(Decoding(1)).scores(logits, 3, [1, 2, 2]), logits)


def test_penalties_are_openais():
    """mu[j] - c[j] * frequency - (c[j] > 0) * presence, of the answer's own tokens."""
    logits = torch.randn(7, generator=torch.Generator().manual_seed(0))
    expected = logits - torch.tensor([0, 1 * 0.5 + 2.0, 2 * 0.5 + 2.0, 0, 0, 0, 0])
    draws = Draws(Decoding(1, presence_penalty=2.0, frequency_penalty=0.5))
    assert torch.allclose(draws.scores(logits, 3, [2, 1, 2]), expected)
    assert torch.equal(draws.scores(logits, 0), logits)


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
