"""Credit regression (ours): token scores are regressed onto leave-one-out credits.

Not the paper's objective. The clipped one saturates the logits at small scale as soon as "object, not
clutter" is learned; regression onto bounded targets keeps learning (docs/algorithm.md).

Shape legend: B records, M combinations, N video tokens, T frames, k retained tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cacovid.config import ObjectiveConfig
from cacovid.objective.advantage import item_advantages
from cacovid.policy.base import PolicyOutput
from cacovid.records import RolloutRecord


@dataclass(frozen=True)
class Credits:
    """Regression targets of one record's tokens or frames."""

    credit: Tensor  # (N,) or (T,): mean(advantage | kept) - mean(advantage | dropped)
    weight: Tensor  # same shape: n/(n+1) for n times kept, 0 where never or always kept


@dataclass(frozen=True)
class CreditTargets:
    """Everything of a record that the credit loss needs."""

    tokens: Credits
    frames: Credits
    informative: bool


def leave_one_out(kept_sum: Tensor, kept_count: Tensor, total_sum: Tensor, total: int) -> Credits:
    """Credits from sums of advantages.

    Args:
        kept_sum: (U,) sum of the advantages of the combinations that kept each unit.
        kept_count: (U,) number of these combinations.
        total_sum: () sum of all advantages.
        total: number of combinations M.
    """
    dropped_count = total - kept_count
    known = (kept_count > 0) & (dropped_count > 0)
    with_it = kept_sum / kept_count.clamp_min(1)
    without_it = (total_sum - kept_sum) / dropped_count.clamp_min(1)
    credit = torch.where(known, with_it - without_it, 0.0)
    return Credits(credit, torch.where(known, kept_count / (kept_count + 1), 0.0))


def credit_targets(record: RolloutRecord, iterations: int) -> CreditTargets:
    """Token credits from token and content samples, frame credits from frame samples."""
    memory = record.iterations[:iterations]
    advantages = item_advantages(memory)
    grid = record.input.grid
    kept_sum, kept_count = torch.zeros(grid.tokens), torch.zeros(grid.tokens)
    frame_masks = torch.cat([scored.combinations.frames for scored in memory]).float()  # (M, T)
    start = 0
    for scored in memory:
        kept = scored.combinations.kept.long()
        rows = slice(start, start + kept.shape[0])
        use = (~advantages.by_frames[rows]).float()
        kept_sum.index_add_(0, kept.flatten(), (advantages.values[rows] * use).repeat_interleave(kept.shape[1]))
        kept_count.index_add_(0, kept.flatten(), use.repeat_interleave(kept.shape[1]))
        start = rows.stop
    by_tokens = ~advantages.by_frames
    of_frames = advantages.values[advantages.by_frames]
    masks = frame_masks[advantages.by_frames]
    return CreditTargets(
        tokens=leave_one_out(kept_sum, kept_count, advantages.values[by_tokens].sum(), int(by_tokens.sum())),
        frames=leave_one_out(of_frames @ masks, masks.sum(0), of_frames.sum(), masks.shape[0]),
        informative=advantages.informative,
    )


def credit_losses(output: PolicyOutput, targets: Sequence[CreditTargets], config: ObjectiveConfig) -> dict[str, Tensor]:
    """Per-record values (B,); ``loss`` carries the gradient.

    loss = sum_i w_i (d_i - scale * c_i)^2 / sum_i w_i + decay * mean_i d_i^2, with d = keep - drop, for
    tokens, plus ``frame_weight`` times the first term for frames where frame samples exist.
    Uninformative records are 0 throughout.
    """
    scores = output.token_scores
    active = torch.tensor([target.informative for target in targets], device=scores.device)
    token_fit = _weighted_fit(scores, [target.tokens for target in targets], config.credit_scale)
    frame_fit = _weighted_fit(output.frame_scores, [target.frames for target in targets], config.credit_scale)
    decay = config.score_decay * scores.square().mean(dim=-1)
    loss = token_fit + config.frame_weight * frame_fit + decay
    values = {
        "loss": loss,
        "token_loss": token_fit,
        "frame_loss": frame_fit,
        "score_std": scores.std(dim=-1, correction=0),
    }
    masked = {name: torch.where(active, value, 0.0) for name, value in values.items()}
    return {**masked, "informative": active.float()}


def _weighted_fit(scores: Tensor, credits: Sequence[Credits], scale: float) -> Tensor:
    """(B,) weighted mean squared distance of (B, U) scores from their targets; 0 where all weights are 0."""
    target = scale * torch.stack([item.credit for item in credits]).to(scores)
    weight = torch.stack([item.weight for item in credits]).to(scores)
    total = weight.sum(dim=-1)
    fit = (weight * (scores - target).square()).sum(dim=-1)
    return fit / torch.where(total > 0, total, 1.0)
