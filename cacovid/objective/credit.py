"""Credit regression (ours): scores are regressed onto leave-one-out credits.

Not the paper's objective. The clipped one saturates the logits at small scale as soon as "object, not
clutter" is learned; regression onto bounded targets keeps learning (docs/benchmarks.md has the figures).

Shape legend: B records, R combinations of all of them, N video tokens, T frames, U units (N or T).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cacovid.config import ObjectiveConfig
from cacovid.objective.memory import Memory
from cacovid.policy.base import PolicyOutput


@dataclass(frozen=True)
class Credits:
    """Regression targets of tokens or frames, float64."""

    credit: Tensor  # (B, U) mean(advantage | kept) - mean(advantage | dropped)
    weight: Tensor  # (B, U) n/(n+1) for n times kept, 0 where never or always kept


def leave_one_out(kept_sum: Tensor, kept_count: Tensor, total_sum: Tensor, total: Tensor) -> Credits:
    """Credits from sums of advantages.

    Args:
        kept_sum: (B, U) sum of the advantages of the combinations that kept each unit.
        kept_count: (B, U) number of these combinations.
        total_sum: (B,) sum of all advantages.
        total: (B,) number of combinations.
    """
    dropped_count = total[:, None] - kept_count
    known = (kept_count > 0) & (dropped_count > 0)
    with_it = kept_sum / kept_count.clamp_min(1)
    without_it = (total_sum[:, None] - kept_sum) / dropped_count.clamp_min(1)
    credit = torch.where(known, with_it - without_it, 0.0)
    return Credits(credit, torch.where(known, kept_count / (kept_count + 1), 0.0))


def token_credits(memory: Memory) -> Credits:
    """Credits of tokens from the token and content samples."""
    return _credits(memory, ~memory.by_frames, memory.per_token)


def frame_credits(memory: Memory) -> Credits:
    """Credits of frames from the frame samples; all weights are 0 where there are none."""
    return _credits(memory, memory.by_frames, memory.per_frame)


def _credits(memory: Memory, rows: Tensor, per_unit: Callable[[Tensor], Tensor]) -> Credits:
    """Credits from the rows in use (R,) bool, whose values ``per_unit`` sums over each unit's rows."""
    use = rows.double()
    advantage = memory.advantage * use
    return leave_one_out(per_unit(advantage), per_unit(use), memory.per_record(advantage), memory.per_record(use))


def credit_losses(output: PolicyOutput, memory: Memory, config: ObjectiveConfig) -> dict[str, Tensor]:
    """Per-record values (B,); ``loss`` carries the gradient.

    loss = sum_i w_i (d_i - scale * c_i)^2 / sum_i w_i + decay * mean_i d_i^2, with d = keep - drop, for
    tokens, plus ``frame_weight`` times the first term for frames where frame samples exist.
    """
    scores = output.token_scores
    token_fit = _weighted_fit(scores, token_credits(memory), config.credit_scale)
    frame_fit = _weighted_fit(output.frame_scores, frame_credits(memory), config.credit_scale)
    decay = config.score_decay * scores.square().mean(dim=-1)
    return {
        "loss": token_fit + config.frame_weight * frame_fit + decay,
        "token_loss": token_fit,
        "frame_loss": frame_fit,
        "score_std": scores.std(dim=-1, correction=0),
    }


def _weighted_fit(scores: Tensor, credits: Credits, scale: float) -> Tensor:
    """(B,) weighted mean squared distance of (B, U) scores from their targets; 0 where all weights are 0."""
    target, weight = (scale * credits.credit).to(scores), credits.weight.to(scores)
    total = weight.sum(dim=-1)
    fit = (weight * (scores - target).square()).sum(dim=-1)
    return fit / torch.where(total > 0, total, 1.0)
