"""The paper's clipped objective on token and frame decisions.

Source: Ma et al., AAAI 2026: per token ``-min(ratio * A, clip(ratio) * A)``, where ratio compares the
keep/drop probability of the token's decision with the one under the old logits. It works as a trust
region: the combinations come from OCSS, not from these Bernoulli probabilities.

For A > 0 the term is -A * min(ratio, 1 + eps_high), for A < 0 it is -A * max(ratio, 1 - eps_low), and
the ratio of a token takes only two values, kept and dropped. So a record's loss is linear in four
numbers per token whose coefficients are sums over its combinations; nothing of size (M, N) is built.

Shape legend: B records, M combinations, N video tokens, T frames, k retained tokens, U units (N or T).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cacovid.config import ObjectiveConfig
from cacovid.objective.advantage import item_advantages
from cacovid.policy.base import PolicyOutput
from cacovid.records import RolloutRecord


@dataclass(frozen=True)
class UnitTargets:
    """Coefficients of one record's tokens or frames."""

    old: Tensor  # (U, 2) log-probabilities under the old logits, columns drop and keep
    gain: Tensor  # (U, 2) sums of weight * advantage over combinations with A > 0, by decision
    loss: Tensor  # (U, 2) the same over combinations with A < 0 (values <= 0)


@dataclass(frozen=True)
class ClippedTargets:
    """Everything of a record that the clipped loss needs."""

    tokens: UnitTargets
    frames: UnitTargets
    informative: bool


def clipped_targets(record: RolloutRecord, iterations: int) -> ClippedTargets:
    """Coefficients from the record's first ``iterations`` inner iterations.

    Token and content samples enter the token loss, frame samples the frame loss.
    """
    memory = record.iterations[:iterations]
    advantages = item_advantages(memory)
    grid = record.input.grid
    gain, loss = torch.zeros(grid.tokens, 2), torch.zeros(grid.tokens, 2)
    samples = int((~advantages.by_frames).sum())
    start = 0
    for scored in memory:
        kept = scored.combinations.kept.long()
        rows = slice(start, start + kept.shape[0])
        share = torch.where(advantages.by_frames[rows], 0.0, advantages.values[rows]) / max(samples, 1)
        _add_tokens(gain, kept, share.clamp_min(0))
        _add_tokens(loss, kept, share.clamp_max(0))
        start = rows.stop
    frame_masks = torch.cat([scored.combinations.frames for scored in memory])[advantages.by_frames]
    return ClippedTargets(
        tokens=UnitTargets(torch.log_softmax(record.old_token_logits.float(), dim=-1), gain, loss),
        frames=_frame_targets(record.old_frame_logits, frame_masks, advantages.values[advantages.by_frames]),
        informative=advantages.informative,
    )


def _add_tokens(coefficients: Tensor, kept: Tensor, share: Tensor) -> None:
    """Add each combination's share to (N, 2): kept tokens weigh 1 - m, dropped ones m, their sum is 1."""
    tokens, count = coefficients.shape[0], kept.shape[1]
    if count == tokens:  # nothing was dropped: both weights are 0 and there is no decision to learn
        return
    mean = count / tokens
    total = 2 * tokens * mean * (1 - mean)
    dropped = share * mean / total
    coefficients[:, 0] += dropped.sum()
    coefficients[:, 0].index_add_(0, kept.flatten(), -dropped.repeat_interleave(count))
    coefficients[:, 1].index_add_(0, kept.flatten(), (share * (1 - mean) / total).repeat_interleave(count))


def _frame_targets(old_logits: Tensor, masks: Tensor, advantage: Tensor) -> UnitTargets:
    """Plain mean over T frames and over the (M, T) frame samples; all 0 without any."""
    samples, frames = masks.shape
    decisions = torch.stack([~masks, masks], dim=-1).float() / (max(samples, 1) * frames)  # (M, T, 2)
    gain = torch.einsum("m,mtd->td", advantage.clamp_min(0), decisions)
    loss = torch.einsum("m,mtd->td", advantage.clamp_max(0), decisions)
    return UnitTargets(torch.log_softmax(old_logits.float(), dim=-1), gain, loss)


def clipped_losses(
    output: PolicyOutput, targets: Sequence[ClippedTargets], config: ObjectiveConfig
) -> dict[str, Tensor]:
    """Per-record values (B,); ``loss`` carries the gradient. Uninformative records are 0 throughout.

    loss = token loss + ``frame_weight`` * frame loss + ``uniform_kl`` * mean KL(policy || uniform) of the
    token decisions.
    """
    active = torch.tensor([target.informative for target in targets], device=output.token_logits.device)
    token_loss, ratio, outside = _surrogate(output.token_logits, [target.tokens for target in targets], config)
    frame_loss, _, _ = _surrogate(output.frame_logits, [target.frames for target in targets], config)
    log_probability = torch.log_softmax(output.token_logits, dim=-1)
    entropy = -(log_probability.exp() * log_probability).sum(dim=-1).mean(dim=-1)
    kl = math.log(2) - entropy
    values = {
        "loss": token_loss + config.frame_weight * frame_loss + config.uniform_kl * kl,
        "token_loss": token_loss,
        "frame_loss": frame_loss,
        "uniform_kl": kl,
        "ratio": ratio,
        "outside_clip": outside,
        "score_std": output.token_scores.std(dim=-1, correction=0),
    }
    masked = {name: torch.where(active, value, 0.0) for name, value in values.items()}
    return {**masked, "informative": active.float()}


def _surrogate(
    logits: Tensor, targets: Sequence[UnitTargets], config: ObjectiveConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """(B,) clipped loss, mean ratio of both decisions, share of ratios outside the clip range."""
    old = torch.stack([target.old for target in targets]).to(logits)
    gain = torch.stack([target.gain for target in targets]).to(logits)
    loss = torch.stack([target.loss for target in targets]).to(logits)
    ratio = torch.exp(torch.log_softmax(logits, dim=-1) - old)  # (B, U, 2)
    low, high = 1 - config.eps_low, 1 + config.eps_high
    surrogate = -(gain * ratio.clamp_max(high) + loss * ratio.clamp_min(low)).sum(dim=(1, 2))
    outside = ((ratio < low) | (ratio > high)).to(logits).mean(dim=(1, 2))
    return surrogate, ratio.mean(dim=(1, 2)), outside
