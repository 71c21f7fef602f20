"""vLLM says what our transformers engine says: every family, both position modes, whatever vLLM's caches do."""

from dataclasses import replace
from pathlib import Path

import pytest

from cacovid.models.loading import load_video_llm
from serving.engine.records import Answer, CompressionWish, Decoding
from tests.support.serving_engine import QUESTION, WORDY, asks, clip_of
from tests.vllm.engines import FAMILIES, Asked, answers, engine_of, model_of, policy_of

pytestmark = pytest.mark.vllm

TOLERANCE = 1e-4
WITH_A_CORE = ("embedded", "qwen3_vl")  # in a process of its own, as in the service: each takes its time to start
GREEDY = Decoding(max_tokens=8, logprobs=3)
DRAWN = Decoding(max_tokens=8, temperature=1.3, top_p=0.9, seed=7, n=2, logprobs=3)
PENALISED = replace(DRAWN, n=1, presence_penalty=0.8, frequency_penalty=0.4)


def requests() -> list[Asked]:
    """Policy and whole video, both position modes, greedy and drawn, several clips and none."""
    wishes = [
        CompressionWish(positions=positions, **wish)
        for positions in ("original", "contiguous")
        for wish in ({"retention": 0.2}, {"method": "all"})
    ]
    asked: list[Asked] = []
    for wish in wishes:
        for decoding in (GREEDY, DRAWN, PENALISED):
            asked.append((asks(QUESTION, compression=wish, decoding=decoding), [clip_of(0)]))
        asked.append((asks(WORDY, compression=wish, decoding=GREEDY), [clip_of(0)]))
        asked.append((asks(QUESTION, videos=2, compression=wish, decoding=GREEDY), [clip_of(1), clip_of(2)]))
    return [*asked, (asks(QUESTION, videos=0, model="plain", decoding=GREEDY), [])]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = model_of(request.param, folder)
    return model, policy_of(load_video_llm(model), folder)


@pytest.fixture(scope="module")
def expected(family) -> list[Answer]:
    with engine_of(*family, kind="transformers") as engine:
        return answers(engine, requests())[0]


SETTINGS = {
    "chunks-and-prefix-cache": {"max_step_tokens": 48, "max_sequences": 16, "prefix_caching": True},
    "neither": {"max_step_tokens": 4096, "prefix_caching": False},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_vllm_answers_like_transformers(family, expected, setting):
    core = Path(family[0].path).name in WITH_A_CORE
    with engine_of(*family, kind="vllm", core=core, **SETTINGS[setting]) as engine:
        first, again = answers(engine, requests(), requests())
    for found in (first, again):  # the second time from the prefix cache, where there is one
        for (asked, _), ours, theirs in zip(requests(), expected, found, strict=True):
            assert theirs.texts == ours.texts, asked
            assert theirs.finished.reasons == ours.finished.reasons
            assert worst(ours, theirs) < TOLERANCE, asked


def worst(ours: Answer, theirs: Answer) -> float:
    """The largest difference of the log-probabilities of all tokens, and of the likeliest beside each."""
    pairs = [
        (mine, other)
        for mine_row, other_row in zip(ours.tokens, theirs.tokens, strict=True)
        for mine, other in zip(mine_row, other_row, strict=True)
    ]
    assert pairs
    assert [[each.text for each in mine.top] for mine, _ in pairs] == [
        [x.text for x in other.top] for _, other in pairs
    ]
    alike = [(mine.logprob, other.logprob) for mine, other in pairs]
    alike += [(m.logprob, o.logprob) for mine, other in pairs for m, o in zip(mine.top, other.top, strict=True)]
    return max(abs(mine - other) for mine, other in alike)
