"""Token samples: one score group per frame, then tokens inside it.

Source: Ma et al., online combination space sampling. Shape legend: M samples, T frames, S tokens
per frame, n groups, w longest group, k tokens kept per frame.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cacovid.config import SamplingConfig
from cacovid.sampling.capping import cap_probabilities

GROUP_CAP_RANGE = (0.1, 0.9)
TOKEN_CLIP = (0.5, 2.0)  # bounds of a token's probability inside its group, times 1/(group length)


class GroupLayout(NamedTuple):
    """Contiguous groups over a frame's ranks 0..S-1 (rank 0 has the highest score)."""

    ranks: Tensor  # (n, w) int64 ranks of each group, clamped where the group is shorter than w
    inside: Tensor  # (n, w) bool, True for the group's own ranks


def group_count(rate: float, per_frame: int, kept: int, group_size: int) -> int:
    """``n = max(int(1 / (rate * group_size)), 1)``, but never so many that a group holds fewer than ``kept``."""
    wanted = int(1 / (rate * group_size) + 1e-9)  # 1/(3/36 * 2) is 6, not 5.999...
    return max(min(wanted, per_frame // kept), 1)


def group_layout(per_frame: int, count: int) -> GroupLayout:
    """Groups whose lengths differ by at most one, the longer ones first."""
    short, longer = divmod(per_frame, count)
    lengths = torch.full((count,), short).add_(torch.arange(count) < longer)
    starts = lengths.cumsum(0) - lengths
    offsets = torch.arange(int(lengths.max()))
    ranks = (starts[:, None] + offsets).clamp_max(per_frame - 1)
    return GroupLayout(ranks, offsets < lengths[:, None])


def group_probabilities(sorted_probabilities: Tensor, layout: GroupLayout, config: SamplingConfig) -> Tensor:
    """(T, n) probability of drawing each group: its mass, capped per frame.

    Args:
        sorted_probabilities: (T, S) softmax of a frame's token scores, descending.
        layout: the groups over ranks.
        config: gives ``max_group_prob``.
    """
    mass = (sorted_probabilities[:, layout.ranks] * layout.inside).sum(dim=-1)
    low, high = GROUP_CAP_RANGE
    cap = min(max(config.max_group_prob / layout.ranks.shape[0], low), high)
    return cap_probabilities(mass, cap)


def token_weights(sorted_probabilities: Tensor, layout: GroupLayout) -> Tensor:
    """(T, n, w) drawing weights inside each group: its probabilities clipped around uniform, 0 outside."""
    inside = layout.inside
    members = sorted_probabilities[:, layout.ranks] * inside
    length = inside.sum(dim=-1)[:, None].double()
    # A group without any mass left after underflow counts as uniform.
    share = torch.where(
        members.sum(dim=-1, keepdim=True) > 0,
        members / members.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny),
        1 / length,
    )
    low, high = TOKEN_CLIP
    return torch.minimum(torch.maximum(share, low / length), high / length) * inside


def draw_successively(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(..., count) indices drawn without replacement, each next one in proportion to the weights left.

    An exponential race (the Gumbel top-k trick): the ``count`` earliest arrivals of independent
    exponential clocks with rates ``weights`` are exactly such successive draws. Weights of 0 lose.
    """
    noise = torch.empty(weights.shape, dtype=torch.float64).exponential_(generator=generator)
    arrivals = torch.where(weights > 0, noise / weights, torch.inf)
    return arrivals.topk(count, dim=-1, largest=False).indices


def draw_tokens(
    scores: Tensor,
    kept: int,
    samples: int,
    rate: float,
    config: SamplingConfig,
    generator: torch.Generator,
    explore: float = 0.0,
) -> Tensor:
    """(M, T, k) int64 token indices within their frames; sample 0 is the plain top-k, the last ones follow no score.

    Args:
        scores: (T, S) float64 token scores on the CPU.
        kept: k tokens per frame.
        samples: M combinations, at least 1.
        rate: sampling rate r, which sets the number of groups.
        config: group size and cap.
        generator: CPU generator of every draw.
        explore: share of the drawn samples that follow no score, but draw any k tokens of a frame alike.
    """
    frames, per_frame = scores.shape
    blank = round(explore * (samples - 1))
    order = scores.argsort(dim=-1, descending=True, stable=True)  # (T, S) token of each rank
    probabilities = torch.softmax(scores, dim=-1).gather(-1, order)
    layout = group_layout(per_frame, group_count(rate, per_frame, kept, config.group_size))
    cumulative = group_probabilities(probabilities, layout, config).cumsum(dim=-1)  # (T, n)
    uniform = torch.rand(frames, samples - 1 - blank, dtype=torch.float64, generator=generator)
    group = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    group = group.clamp_max(layout.ranks.shape[0] - 1).T  # (M-1-blank, T)
    weights = token_weights(probabilities, layout)[torch.arange(frames), group]  # (M-1-blank, T, w)
    rank = layout.ranks[group].gather(-1, draw_successively(weights, kept, generator))
    top = torch.arange(kept).expand(1, frames, kept)
    anywhere = draw_successively(torch.ones(blank, frames, per_frame, dtype=torch.float64), kept, generator)
    return torch.cat([order.expand(samples - blank, -1, -1).gather(-1, torch.cat([top, rank])), anywhere])
