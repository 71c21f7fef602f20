"""The figures of one training step, as they go to metrics.jsonl, TensorBoard and RLlib's results."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from actors.task import TaskResult
from cacovid.errors import UserError
from cacovid.evaluation.result import EvaluationResult
from cacovid.records import Mode, Rollout


@dataclass(frozen=True)
class StepMetrics:
    """What the driver knows of a step beside rollouts and losses. Times in seconds."""

    step: int
    epoch: float
    policy_version: int
    wait_seconds: float  # the driver waited for rollouts
    learn_seconds: float  # the learner's updates and publishing
    publish_seconds: float  # thereof gathering the weights and handing them to the object store
    published_bytes: int  # of the weights, as the object store holds them
    lost_actors: int  # deaths so far
    requeued_tasks: int  # tasks given out again so far
    ready_actors: int
    wanted_actors: int
    replay_items: int
    replay_bytes: int
    skipped: int  # items set aside so far


def rollout_metrics(
    results: Sequence[TaskResult], losses: Sequence[dict[str, float]], known: StepMetrics
) -> dict[str, float]:
    """One flat row: rewards over all combinations, the updates' mean losses, throughput inputs."""
    rollouts = [rollout for result in results for rollout in result.rollouts]
    rewards = torch.cat([scored.reward for rollout in rollouts for scored in rollout.iterations])
    row = {
        **{name: float(value) for name, value in asdict(known).items()},
        "reward": float(rewards.mean()),
        "top_k_reward": sum(_top_k_reward(rollout) for rollout in rollouts) / len(rollouts),
        "likelihood": float(torch.cat([s.likelihood for r in rollouts for s in r.iterations]).mean()),
        "rewards_differ": sum(_rewards_differ(rollout) for rollout in rollouts) / len(rollouts),
        "rate": sum(scored.combinations.rate for rollout in rollouts for scored in rollout.iterations)
        / sum(len(rollout.iterations) for rollout in rollouts),
        "combinations": float(rewards.numel()),
        "questions": float(len(rollouts)),
        "staleness": float(known.step - known.policy_version),
        "actor_seconds": sum(result.seconds for result in results),
        "encode_seconds": sum(result.encode_seconds for result in results),
    }
    for name in sorted(losses[0]):
        assert name not in row, f"the losses' {name!r} would overwrite the rollouts'"
        row[name] = sum(loss[name] for loss in losses) / len(losses)
    return row


def evaluation_metrics(evaluations: Sequence[EvaluationResult]) -> dict[str, float]:
    """Means over single questions' evaluations by one policy, as RLlib's results take them; also by question type.

    Raises:
        UserError: There are none.
    """
    if not evaluations:
        raise UserError("no question of evaluation.data could be used: see skipped-evaluation.jsonl")
    values: dict[str, list[float]] = {}

    def add(name: str, value: float | None) -> None:
        if value is not None:
            values.setdefault(name, []).append(value)

    for result in evaluations:
        add("full_accuracy", result.full_accuracy)
        add("question_awareness_auc", result.question_awareness_auc)
        for row in result.rows:
            add(f"accuracy_{row.retention:g}", row.accuracy)
            add(f"evidence_recall_{row.retention:g}", row.evidence_recall)
        for part in result.slices:
            if part.by == "question_type":
                add(f"{part.value}_accuracy_{part.retention:g}", part.accuracy)
    means = {name: sum(each) / len(each) for name, each in values.items()}
    return {**means, "questions": float(len(evaluations))}


def _top_k_reward(rollout: Rollout) -> float:
    """Reward of the policy's plain top k, the first token sample: what the policy earns without exploring."""
    first = rollout.iterations[0]
    token_samples = first.combinations.modes == Mode.TOKEN
    return float(first.reward[token_samples][0])


def _rewards_differ(rollout: Rollout) -> bool:
    """Whether the item's rewards differ at all: without spread there is nothing to learn.

    ``informative`` among the losses is the same of the updates' records, most of them replayed.
    """
    rewards = torch.cat([scored.reward for scored in rollout.iterations])
    return bool(rewards.min() != rewards.max())
