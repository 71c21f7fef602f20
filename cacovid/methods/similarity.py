"""What several baselines ask of a clip's tokens: likeness along time, and density-peak clusters.

Shape legend: N video tokens, T frames, S tokens per frame, U tokens of a set, D width.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cacovid.methods.selection import top_tokens
from cacovid.records import TokenGrid
from cacovid.sampling.density_peaks import peak_scores, squared_distances

NEIGHBOURS = 7  # of the density


def by_frame(features: Tensor, grid: TokenGrid) -> Tensor:
    """(T, S, D) float32 of (N, D)."""
    return features.float().reshape(grid.frames, grid.per_frame, -1)


def same_place(features: Tensor, grid: TokenGrid) -> Tensor:
    """(T - 1, S) cosine of each place with itself one frame earlier."""
    frames = normalize(by_frame(features, grid), dim=-1)
    return (frames[1:] * frames[:-1]).sum(-1)


def runs(borders: Tensor) -> Iterator[tuple[int, int]]:
    """(first, end) of the runs of frames between ``borders`` (T - 1,) bool: whether a cut lies behind each frame."""
    ends = [*((borders.nonzero().squeeze(1) + 1).tolist()), len(borders) + 1]
    return zip([0, *ends[:-1]], ends, strict=True)


def density_peaks(rows: Tensor, count: int) -> Tensor:
    """(U,) int64 on the CPU: the index of the centre that each of (U, D) ``rows`` belongs to, of ``count`` centres.

    DPC-kNN (Du et al. 2016): centres have the largest product of density and distance to the nearest denser row; the
    others go to the nearest centre. Ties go to the lower index.
    """
    squared = squared_distances(rows[None], rows[None])
    centres = top_tokens(peak_scores(squared, NEIGHBOURS)[0].cpu(), count)
    nearest = squared[0].cpu()[:, centres].argmin(dim=1)
    nearest[centres] = torch.arange(count)
    return centres[nearest]


def most_alike(likeness: Tensor, alike: Tensor, savings: Tensor, room: int) -> Tensor:
    """(C,) bool: the candidates that are ``alike``, less the least alike ones until at most ``room`` tokens are saved.

    Args:
        likeness: (C,) of each candidate for merging.
        alike: (C,) bool: those beyond the method's threshold, which so rises to what the budget allows.
        savings: (C,) int64 tokens that merging each saves.
        room: tokens that may go.
    """
    order = likeness.argsort(descending=True, stable=True)
    fits = alike[order] & (savings[order].cumsum(0) <= room)
    chosen = torch.zeros(len(likeness), dtype=torch.bool)
    chosen[order[: int(fits.int().cumprod(0).sum())]] = True
    return chosen
