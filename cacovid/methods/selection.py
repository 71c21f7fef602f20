"""Which video tokens are retained at inference: always exactly the budget.

Shape legend: N video tokens, T frames, S tokens per frame, k retained tokens.
"""

import math
from typing import get_args

import torch
from torch import Tensor

from cacovid.config import SelectionConfig
from cacovid.errors import UserError
from cacovid.records import TokenGrid

SHARE_GAIN = 3.0  # the paper's factor on normalised frame scores before the softmax


def budget(retention: float, tokens: int) -> int:
    """``max(1, floor(retention * tokens))`` retained tokens; a product within 1e-9 of an integer counts as it.

    Raises UserError when ``retention`` lies outside (0, 1].
    """
    if not 0 < retention <= 1:
        raise UserError(f"retention {retention} is outside (0, 1]: give the share of video tokens to keep, e.g. 0.1")
    return max(1, math.floor(retention * tokens + 1e-9))


def select_tokens(
    token_scores: Tensor, frame_scores: Tensor, grid: TokenGrid, retention: float, config: SelectionConfig
) -> Tensor:
    """The retained tokens of one clip by ``config.rule``.

    Args:
        token_scores: (N,) keep minus drop.
        frame_scores: (T,) keep minus drop; read by rule 'frame-budgets' only.
        grid: how the N tokens lie.
        retention: share of tokens to keep.
        config: the rule and its settings.

    Returns:
        (k,) int64 ascending token indices on the CPU, k = budget(retention, N). Ties go to the lower index.
    """
    scores = _finite(token_scores, "token", grid.tokens)
    total = budget(retention, grid.tokens)
    if config.rule == "global":
        return top_tokens(scores, total)
    scored = max(1, math.floor(config.scored_share * total + 1e-9))
    if config.rule == "half-uniform":
        chosen = top_tokens(scores, scored)
    else:
        counts = frame_budgets(_finite(frame_scores, "frame", grid.frames), scored, grid, config.max_frame_share)
        chosen = _top_within_frames(scores, counts, grid)
    return fill_evenly(chosen, total, grid.tokens)


def frame_shares(frame_scores: Tensor, max_frame_share: float) -> Tensor:
    """(T,) float64 shares of the scored budget: softmax of 3 * normalised scores, within [1/(2T), max_frame_share/T].

    The paper clips and renormalises; renormalising lifts clipped shares over the cap again, so that its code caps once
    more and gives the rest to the others. Ours is the fixed point: all shares scaled by one factor and clipped, with
    the factor at which they sum to 1. Departure: scores are divided by their largest magnitude only where it exceeds 1,
    so that a frame head without signal (scores near 0) stays near uniform instead of being stretched to full spread.
    """
    scores = frame_scores.double()
    frames = scores.shape[0]
    scale = scores.abs().max().clamp_min(1.0)
    return _scaled_into(torch.softmax(SHARE_GAIN * scores / scale, dim=0), 0.5 / frames, _cap(max_frame_share, frames))


def _cap(max_frame_share: float, frames: int) -> float:
    """The largest share of one frame; below 1/T the shares could not sum to 1."""
    return max(max_frame_share, 1.0) / frames


def _scaled_into(shares: Tensor, lower: float, upper: float) -> Tensor:
    """(T,) ``clamp(f * shares, lower, upper)`` for the factor f at which they sum to 1; shares are above 0."""
    turns = torch.cat([lower / shares, upper / shares]).sort().values  # the sum is linear in f between these
    sums = (turns[:, None] * shares).clamp(lower, upper).sum(dim=1)
    after = int((sums < 1).sum().clamp(1, len(turns) - 1))
    low, high = sums[after - 1], sums[after]
    part = ((1 - low) / (high - low)).nan_to_num(0.0, 0.0, 0.0)  # 0 / 0: all lie at one bound
    factor = torch.lerp(turns[after - 1], turns[after], part.clamp(0, 1))
    return (factor * shares).clamp(lower, upper)


def frame_budgets(frame_scores: Tensor, seats: int, grid: TokenGrid, max_frame_share: float) -> Tensor:
    """(T,) int64 tokens per frame that sum to ``seats``, none above its capped share of them.

    Shares are real numbers, tokens whole: the cap is rounded down, but to no less than an even spread needs. Frames of
    equal shares, as those at the cap, come in the order of their scores.
    """
    most = max(math.floor(_cap(max_frame_share, grid.frames) * seats + 1e-9), math.ceil(seats / grid.frames))
    order = frame_scores.argsort(descending=True, stable=True)
    counts = apportion(frame_shares(frame_scores, max_frame_share)[order], seats, min(most, grid.per_frame))
    return torch.zeros_like(counts).scatter(0, order, counts)


def apportion(shares: Tensor, seats: int, capacity: int) -> Tensor:
    """(T,) int64 tokens per frame that sum to ``seats``: one a frame first, the rest by Sainte-Laguë.

    The j-th token of a frame has priority share / (j - 1/2); the first tokens of all frames go before
    every other one, in order of their shares. No frame gets more than ``capacity``.
    """
    frames = shares.shape[0]
    assert 0 < seats <= frames * capacity, f"cannot give {seats} tokens to {frames} frames of {capacity}"
    depth = torch.arange(1, capacity + 1, dtype=torch.float64)
    priority = shares.double()[:, None] / (depth - 0.5)
    priority[:, 0] += priority.max() + 1
    winners = priority.flatten().argsort(descending=True, stable=True)[:seats]
    return torch.bincount(winners // capacity, minlength=frames)


def top_tokens(scores: Tensor, count: int) -> Tensor:
    """(count,) int64 ascending indices of the largest of (N,) scores; ties go to the lower index."""
    return scores.argsort(descending=True, stable=True)[:count].sort().values


def spread_evenly(count: int, available: int) -> Tensor:
    """(count,) int64 distinct, ascending positions spread evenly over ``0..available-1``."""
    return ((2 * torch.arange(count) + 1) * available) // (2 * max(count, 1))


def fill_evenly(chosen: Tensor, total: int, tokens: int) -> Tensor:
    """``chosen`` plus an even spread over the tokens not yet chosen, ascending, ``total`` in all."""
    mask = torch.zeros(tokens, dtype=torch.bool)
    mask[chosen] = True
    free = (~mask).nonzero().squeeze(1)
    mask[free[spread_evenly(total - chosen.shape[0], free.shape[0])]] = True
    return mask.nonzero().squeeze(1)


def _top_within_frames(scores: Tensor, counts: Tensor, grid: TokenGrid) -> Tensor:
    """Indices of the ``counts[t]`` best tokens of every frame t."""
    order = scores.unflatten(0, (grid.frames, grid.per_frame)).argsort(dim=-1, descending=True, stable=True)
    taken = torch.arange(grid.per_frame)[None, :] < counts[:, None]
    tokens: Tensor = order + torch.arange(grid.frames)[:, None] * grid.per_frame
    return tokens[taken]


def _finite(scores: Tensor, name: str, expected: int) -> Tensor:
    """(expected,) float64 scores on the CPU."""
    if scores.shape != (expected,):
        raise UserError(f"{name} scores have shape {tuple(scores.shape)}, the grid needs ({expected},)")
    scores = scores.detach().double().cpu()
    broken = int((~scores.isfinite()).sum())
    if broken:
        raise UserError(f"{broken} of {expected} {name} scores are not finite: the policy's training has diverged")
    return scores


def selection_rule(name: str) -> SelectionConfig:
    """The rule ``name`` with its default settings. Raises UserError for an unknown one."""
    rules = get_args(SelectionConfig.model_fields["rule"].annotation)
    if name not in rules:
        raise UserError(f"unknown selection rule {name!r}: choose of {', '.join(rules)}")
    return SelectionConfig.model_validate({"rule": name})
