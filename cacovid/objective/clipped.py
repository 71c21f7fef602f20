"""The paper's clipped objective on token and frame decisions.

Source: Ma et al., AAAI 2026: per token ``-min(ratio * A, clip(ratio) * A)``, where ratio compares the
keep/drop probability of the token's decision with the one under the old logits. It works as a trust
region: the combinations come from OCSS, not from these Bernoulli probabilities.

For A > 0 the term is -A * min(ratio, 1 + eps_high), for A < 0 it is -A * max(ratio, 1 - eps_low), and
the ratio of a token takes only two values, kept and dropped. So a record's loss is linear in four
numbers per token whose coefficients are sums over its combinations; no mask over (R, N) is built.

Two settings are ours. ``ratio = 'current'`` compares with the newest policy's own probability: the ratio is 1, only its
gradient counts (the policy gradient), and replayed combinations teach as long as they are replayed, where the ratio to
the policy that drew them leaves the clip range. ``uniform_kl`` is the paper's KL term, which gets no weight there;
without it the scores saturate as soon as objects are told from clutter, long before the question shows.

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
    """Sums over combinations of the weights of the decisions taken, by decision (drop, keep); (B, U, 2) float64."""

    gain: Tensor  # times the advantage, over combinations with A > 0
    loss: Tensor  # times the advantage, over combinations with A < 0 (values <= 0)
    taken: Tensor  # the weights alone: each record's sum to 1, to 0 without samples


def token_coefficients(memory: Memory) -> Coefficients:
    """Mean over token and content samples; kept tokens weigh 1 - m, dropped ones m, m the mask's mean."""
    kept = memory.size.double()
    dropped = memory.grid.tokens - kept
    # sum of weights 2*N*m*(1-m) = 2*k*(N-k)/N; without a dropped token there is no decision to learn
    decisive = dropped > 0
    keep_weight = torch.where(decisive, 0.5 / kept, 0.0)
    drop_weight = torch.where(decisive, 0.5 / dropped.clamp_min(1), 0.0)
    return _coefficients(memory, ~memory.by_frames, keep_weight, drop_weight, memory.per_token)


def frame_coefficients(memory: Memory) -> Coefficients:
    """Plain mean over frames and over the frame samples; all 0 without any."""
    weight = torch.full_like(memory.advantage, 1 / memory.grid.frames)
    return _coefficients(memory, memory.by_frames, weight, weight, memory.per_frame)


def _coefficients(
    memory: Memory, use: Tensor, keep_weight: Tensor, drop_weight: Tensor, per_unit: Callable[[Tensor], Tensor]
) -> Coefficients:
    """Means over the rows in use (R,) bool of the weights of their decisions."""
    share = use.double() / memory.per_record(use.double()).clamp_min(1)[memory.record]

    def decisions(part: Tensor) -> Tensor:
        to_drop = part * drop_weight
        dropped = memory.per_record(to_drop)[:, None] - per_unit(to_drop)
        return torch.stack([dropped, per_unit(part * keep_weight)], dim=-1)

    weighted = share * torch.where(use, memory.advantage, 0.0)
    return Coefficients(decisions(weighted.clamp_min(0)), decisions(weighted.clamp_max(0)), decisions(share))


def clipped_losses(
    output: PolicyOutput, records: Sequence[RolloutRecord], memory: Memory, config: ObjectiveConfig
) -> dict[str, Tensor]:
    """Per-record values (B,); ``loss`` carries the gradient.

    loss = token loss + ``frame_weight`` * frame loss, each plus ``uniform_kl`` * KL(policy || uniform) of its
    decisions.
    """
    token_parts, frame_parts = token_coefficients(memory), frame_coefficients(memory)
    if config.ratio == "current":  # records that come back after a resume have no others
        old_tokens, old_frames = output.token_logits.detach(), output.frame_logits.detach()
    else:
        old_tokens = torch.stack([record.old_token_logits for record in records])
        old_frames = torch.stack([record.old_frame_logits for record in records])
    token_loss, ratio, outside = _surrogate(output.token_logits, old_tokens, token_parts, config)
    frame_loss, _, _ = _surrogate(output.frame_logits, old_frames, frame_parts, config)
    token_kl = _to_uniform(output.token_logits, token_parts, config)
    frame_kl = _to_uniform(output.frame_logits, frame_parts, config)
    regular = token_kl + config.frame_weight * frame_kl
    return {
        "loss": token_loss + config.frame_weight * frame_loss + config.uniform_kl * regular,
        "token_loss": token_loss,
        "frame_loss": frame_loss,
        "uniform_kl": token_kl,
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


def _to_uniform(logits: Tensor, coefficients: Coefficients, config: ObjectiveConfig) -> Tensor:
    """(B,) KL of the decisions from a fair coin's; 0 for records without samples of these decisions.

    'exact' is the mean over units, at most log 2: a saturated policy feels it no more. 'k3' estimates it from the
    decisions taken (Schulman, 2020), ``r - 1 - log r`` with ``r = 0.5 / p(decision)``, weighed as in the loss; it
    grows without bound where the policy all but excludes a decision that was taken.
    """
    log_probability = torch.log_softmax(logits, dim=-1)
    taken = coefficients.taken.to(logits)
    if config.kl == "k3":
        log_ratio = math.log(0.5) - log_probability
        estimate = torch.exp(log_ratio.clamp_max(LOG_RATIO_BOUND)) - 1 - log_ratio
        return (taken * estimate).sum(dim=(1, 2))
    entropy = -(log_probability.exp() * log_probability).sum(dim=-1).mean(dim=-1)
    return torch.where(taken.sum(dim=(1, 2)) > 0, math.log(2) - entropy, 0.0)
