"""The row of one training step: rollouts and losses side by side, no figure in another's place."""

import pytest

from actors.task import TaskResult
from cacovid.evaluation.result import EvaluationResult, Row, Slice
from cluster.training.step_metrics import StepMetrics, evaluation_metrics, rollout_metrics
from tests.support.made_records import make_record

KNOWN = StepMetrics(
    step=3,
    epoch=0.5,
    policy_version=2,
    wait_seconds=0.1,
    learn_seconds=0.2,
    publish_seconds=0.1,
    published_bytes=1_000,
    lost_actors=0,
    requeued_tasks=0,
    ready_actors=2,
    wanted_actors=2,
    replay_items=9,
    replay_bytes=99,
    skipped=0,
)


def rolled_out() -> list[TaskResult]:
    """Four questions, one of them with rewards that differ."""
    records = [make_record(seed, modes="token", equal_rewards=seed > 0) for seed in range(4)]
    return [TaskResult(rollouts=tuple(record.parts()[0] for record in records))]


def test_the_updates_share_of_informative_records_stands_beside_the_rollouts_own() -> None:
    losses = [{"loss": 1.0, "informative": 0.5}, {"loss": 3.0, "informative": 1.0}]
    row = rollout_metrics(rolled_out(), losses, KNOWN)
    assert (row["informative"], row["rewards_differ"]) == (0.75, 0.25)
    assert (row["loss"], row["staleness"], row["questions"]) == (2.0, 1.0, 4.0)


@pytest.mark.parametrize("name", ["reward", "rate", "skipped"])
def test_a_loss_of_another_figures_name_is_refused(name: str) -> None:
    with pytest.raises(AssertionError, match=f"'{name}' would overwrite"):
        rollout_metrics(rolled_out(), [{"loss": 1.0, name: 0.0}], KNOWN)


def evaluated(kind: str, accuracy: float) -> EvaluationResult:
    """One question's."""
    row = Row("policy", 0.1, accuracy, 0.0, None, 1, 0.1, 0.1)
    parts = (
        Slice("question_type", kind, "all tokens", 1.0, 1.0, 0.0, 1),
        Slice("question_type", kind, "policy", 0.1, accuracy, 0.0, 1),
        Slice("group", "short", "policy", 0.1, accuracy, 0.0, 1),
    )
    return EvaluationResult("m", 1, 1, 0, 1.0, None, (row,), 0.0, {}, 0, slices=parts)


def test_each_question_type_has_its_own_accuracy() -> None:
    row = evaluation_metrics([evaluated("order", 1.0), evaluated("order", 0.0), evaluated("count", 1.0)])
    assert row == {
        "full_accuracy": 1.0,
        "accuracy_0.1": pytest.approx(2 / 3),
        "order_accuracy_1": 1.0,
        "order_accuracy_0.1": 0.5,
        "count_accuracy_1": 1.0,
        "count_accuracy_0.1": 1.0,
        "questions": 3.0,
    }
