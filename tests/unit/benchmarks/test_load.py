"""What ``make bench-serve`` counts."""

import pytest
import torch
import urllib3

from benchmarks.endless import endless_model
from benchmarks.load import LOST, LoadClip, Outcomes, bounded_load, send, send_streamed, steady_load
from cacovid.config import ModelConfig
from cacovid.models.loading import load_video_llm
from tests.support.ports import free_port
from tests.support.serving_server import POLICY, running, service_config
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def service():
    with running(service_config(api={"page": False}), keys=()) as running_service:
        yield running_service


@pytest.fixture(scope="module")
def clip() -> LoadClip:
    return LoadClip.draw(0)


def test_every_body_is_sent_once_and_counted(service, clip):
    bodies = [clip.body(model, 0.1) for model in (POLICY, POLICY, POLICY, "unknown")]
    outcomes = bounded_load(service.url, bodies, clients=2)
    assert outcomes.statuses == {200: 3, 404: 1}
    assert len(outcomes.seconds) == len(outcomes.answered_at) == 3
    assert outcomes.throughput == pytest.approx(3 / outcomes.elapsed_s)
    assert outcomes.others() == "1 x 404"


def test_a_steady_load_ends_with_its_block(service, clip):
    with steady_load(service.url, lambda: clip.body(POLICY, 0.1), clients=2) as outcomes:
        wait_until(lambda: outcomes.statuses[200] > 3)
    assert set(outcomes.statuses) == {200}
    assert 0 < outcomes.longest_gap() < outcomes.elapsed_s


def test_streams_tell_their_tokens_and_their_first_text(service, clip):
    bodies = [clip.body(model, 0.1) for model in (POLICY, POLICY, "unknown")]
    outcomes = bounded_load(service.url, bodies, 2, send_streamed)
    assert outcomes.statuses == {200: 2, 404: 1}
    assert outcomes.tokens == 2  # the embedded model answers with a letter
    assert len(outcomes.first_s) == 2
    assert all(0 < first <= whole for first, whole in zip(outcomes.first_s, outcomes.seconds, strict=True))


def test_the_model_of_the_engines_load_never_ends_an_answer(tmp_path):
    llm = load_video_llm(ModelConfig(path=endless_model(tmp_path / "model")))
    encoded = llm.encode_text("what color is the ring")
    (tokens,) = llm.answer(encoded, torch.zeros(1, 0, dtype=torch.int64), 40).tokens
    assert len(tokens) == 40


def test_a_connection_without_an_answer_is_lost_and_no_answer(clip):
    outcomes = Outcomes()
    with urllib3.PoolManager(1) as pool:
        send(f"http://127.0.0.1:{free_port()}", clip.body(POLICY, 0.1), outcomes, pool)
    assert (outcomes.statuses, outcomes.seconds, outcomes.others()) == ({LOST: 1}, [], "1 x lost")


def test_percentiles_are_of_the_answers():
    outcomes = Outcomes(seconds=[0.4, 0.1, 0.3, 0.2, 9.9])
    assert [outcomes.percentile(share) for share in (0.0, 0.5, 0.99)] == [0.1, 0.3, 9.9]
