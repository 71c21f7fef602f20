"""Rewards by probability: what the objective learns from, and where there is none."""

from dataclasses import replace

import pytest
import torch

from cacovid.config import ObjectiveConfig
from cacovid.objective.loss import batch_loss
from cacovid.objective.worth import by_worth
from cacovid.policy.base import PolicyOutput
from cacovid.records import RolloutRecord
from cacovid.seeding import generator
from tests.support.made_records import make_record


def likely(record: RolloutRecord, seed: int = 0) -> RolloutRecord:
    """With a probability for each answer."""
    draw = generator("likelihood", seed)
    iterations = [replace(each, likelihood=torch.rand(len(each.reward), generator=draw)) for each in record.iterations]
    return replace(record, iterations=tuple(iterations))


def loss_of(record: RolloutRecord, config: ObjectiveConfig) -> tuple[float, torch.Tensor]:
    """Loss and its gradient at the old logits."""
    tokens = record.old_token_logits[None].double().requires_grad_()
    result = batch_loss(PolicyOutput(tokens, record.old_frame_logits[None].double()), [record], 3, config)
    result.loss.backward()
    assert tokens.grad is not None
    return float(result.loss.detach()), tokens.grad


@pytest.mark.parametrize("kind", ["evidence", "credit", "clipped"])
def test_probabilities_take_the_place_of_rewards(kind: str) -> None:
    record = likely(make_record(0))
    expected = replace(record, iterations=tuple(replace(each, reward=each.likelihood) for each in record.iterations))
    by_probability = loss_of(record, ObjectiveConfig.model_validate({"kind": kind, "reward": "probability"}))
    plain = loss_of(expected, ObjectiveConfig.model_validate({"kind": kind}))
    assert by_probability[0] == plain[0]
    assert torch.equal(by_probability[1], plain[1])
    assert by_probability[0] != loss_of(record, ObjectiveConfig.model_validate({"kind": kind}))[0]


def test_generated_answers_keep_their_rewards() -> None:
    record = make_record(0)  # no likelihood was computed
    (same,) = by_worth([record], "probability")
    for before, after in zip(record.iterations, same.iterations, strict=True):
        assert torch.equal(before.reward, after.reward)
    assert by_worth([record], "answer")[0] is record


def test_answers_that_are_all_right_still_teach_by_probability() -> None:
    record = likely(make_record(2, equal_rewards=True))
    plain, by_probability = (
        loss_of(record, ObjectiveConfig.model_validate({"reward": reward}))[1] for reward in ("answer", "probability")
    )
    assert not plain.any()
    assert by_probability.any()
