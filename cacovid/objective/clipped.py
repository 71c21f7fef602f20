"""The paper's clipped objective on token and frame decisions.

Source: Ma et al., AAAI 2026: per token ``-min(ratio * A, clip(ratio) * A)``, where ratio compares the
keep/drop probability of the token's decision with the one under the old logits. It works as a trust
region: the combinations come from OCSS, not from these Bernoulli probabilities.

For A > 0 the term is -A * min(ratio, 1 + eps_high), for A < 0 it is -A * max(ratio, 1 - eps_low), and
the ratio of a token takes only two values, kept and dropped. So a record's loss is linear in four
numbers per token whose coefficients are sums over its combinations; no mask over (R, N) is built.

Shape legend: B records, R combinations of all of them, N video tokens, T frames, U units (N or T).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cacovid.config import ObjectiveConfig
from cacovid.objective.memory import Memory
from cacovid.policy.base import PolicyOutput
from cacovid.records import RolloutRecord

LOG_RATIO_BOUND = 20.0  # far outside the clip range


@dataclass(frozen=True)
class Coefficients:
    """Sums of weight * advantage over combinations, by decision (drop, keep), float64."""

    gain: Tensor  # (B, U, 2) over combinations with A > 0
    loss: Tensor  # (B, U, 2) over combinations with A < 0 (values <= 0)


def token_coefficients(memory: Memory) -> Coefficients:
    """Mean over token and content samples; kept tokens weigh 1 - m, dropped ones m, m the mask's mean."""
    use = ~memory.by_frames
    share = torch.where(use, memory.advantage, 0.0) / _samples(memory, use)
    kept = memory.size.double()
    dropped = memory.grid.tokens - kept
    # sum of weights 2*N*m*(1-m) = 2*k*(N-k)/N; without a dropped token there is no decision to learn
    decisive = dropped > 0
    keep_weight = torch.where(decisive, 0.5 / kept, 0.0)
    drop_weight = torch.where(decisive, 0.5 / dropped.clamp_min(1), 0.0)
    return _by_sign(memory, share, keep_weight, drop_weight, memory.per_token)


def frame_coefficients(memory: Memory) -> Coefficients:
    """Plain mean over frames and over the frame samples; all 0 without any."""
    use = memory.by_frames
    share = torch.where(use, memory.advantage, 0.0) / _samples(memory, use)
    weight = torch.full_like(share, 1 / memory.grid.frames)
    return _by_sign(memory, share, weight, weight, memory.per_frame)


def _samples(memory: Memory, use: Tensor) -> Tensor:
    """(R,) how many rows of the row's record are in use, at least 1."""
    return memory.per_record(use.double()).clamp_min(1)[memory.record]


def _by_sign(
    memory: Memory, share: Tensor, keep_weight: Tensor, drop_weight: Tensor, per_unit: Callable[[Tensor], Tensor]
) -> Coefficients:
    """Sum ``share`` times the decision's weight over the rows, apart for positive and negative shares."""

    def decisions(part: Tensor) -> Tensor:
        to_drop = part * drop_weight
        dropped = memory.per_record(to_drop)[:, None] - per_unit(to_drop)
        return torch.stack([dropped, per_unit(part * keep_weight)], dim=-1)

    return Coefficients(decisions(share.clamp_min(0)), decisions(share.clamp_max(0)))


def clipped_losses(
    output: PolicyOutput, records: Sequence[RolloutRecord], memory: Memory, config: ObjectiveConfig
) -> dict[str, Tensor]:
    """Per-record values (B,); ``loss`` carries the gradient.

    loss = token loss + ``frame_weight`` * frame loss + ``uniform_kl`` * mean KL(policy || uniform) of the
    token decisions.
    """
    old_tokens = torch.stack([record.old_token_logits for record in records])
    old_frames = torch.stack([record.old_frame_logits for record in records])
    token_loss, ratio, outside = _surrogate(output.token_logits, old_tokens, token_coefficients(memory), config)
    frame_loss, _, _ = _surrogate(output.frame_logits, old_frames, frame_coefficients(memory), config)
    log_probability = torch.log_softmax(output.token_logits, dim=-1)
    entropy = -(log_probability.exp() * log_probability).sum(dim=-1).mean(dim=-1)
    kl = math.log(2) - entropy
    return {
        "loss": token_loss + config.frame_weight * frame_loss + config.uniform_kl * kl,
        "token_loss": token_loss,
        "frame_loss": frame_loss,
        "uniform_kl": kl,
        "ratio": ratio,
        "outside_clip": outside,
        "score_std": output.token_scores.std(dim=-1, correction=0),
    }


def _surrogate(
    logits: Tensor, old_logits: Tensor, coefficients: Coefficients, config: ObjectiveConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """(B,) clipped loss, mean ratio over both decisions, share of ratios outside the clip range."""
    gain, loss = coefficients.gain.to(logits), coefficients.loss.to(logits)
    log_ratio = torch.log_softmax(logits, dim=-1) - torch.log_softmax(old_logits.to(logits), dim=-1)
    # This objective can drive logits to hundreds: an infinite ratio would turn clipped gradients into NaN.
    ratio = torch.exp(log_ratio.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND))
    low, high = 1 - config.eps_low, 1 + config.eps_high
    surrogate = -(gain * ratio.clamp_max(high) + loss * ratio.clamp_min(low)).sum(dim=(1, 2))
    outside = ((ratio < low) | (ratio > high)).to(logits).mean(dim=(1, 2))
    return surrogate, ratio.mean(dim=(1, 2)), outside
