"""Diverse tokens that the tower looks at, trees of alike tokens along time, and a cut within the LLM.

Shape legend: N video tokens, T frames, S tokens per frame, D width.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cacovid.methods.inside_steps import InsideBaseline, KeepMostAttended
from cacovid.methods.protocol import EvaluationCase
from cacovid.methods.sharing import evenly, share_out
from cacovid.methods.similarity import by_frame, density_peaks, most_alike, runs
from cacovid.methods.tower import tower_attention
from cacovid.models.reduction import Merge, Reduction

CUT, SEGMENTS = 0.9, 8  # cosine of frame means below which a segment ends; the fewest segments
SELECTED = 0.7  # of the tokens before the LLM; the others are merged ones
LINK = 0.8  # cosine above which a token is the child of one in the frame before


class FlashVID(InsideBaseline):
    """FlashVID: 70 % of the tokens by diversity times attention times relevance; the others link into trees
    along time, whose means DPC-kNN merges; at LLM layer 20 of 28, 30 % stay by the last column's attention.

    Readings: a tree's row is the mean of all its tokens. Departures: counts a frame are near-equal instead of rounded
    up, so that the mean over the layers is the budget.
    """

    name = "flashvid"
    needs_tower_attention = True
    published_layer = 20
    share = 0.3

    def reduce(self, case: EvaluationCase, retention: float) -> Reduction:
        """Mean over the layers: the budget."""
        grid, plan = case.input.grid, self.stages(case, retention)
        received = tower_attention(self.name, case).received.view(grid.frames, -1)
        frames = by_frame(case.input.features, grid)
        selected = round(SELECTED * plan.before)
        chosen = diverse(pull(frames, received), evenly(selected, grid.frames))
        trees = Merge.averaging(linked(normalize(frames, dim=-1), chosen, plan.before - selected))
        merged = trees.then(self._clusters(trees, case.input.features, chosen, plan.before - selected))
        return Reduction.merged(case.encoded, merged, KeepMostAttended(plan.layer, plan.behind))

    @staticmethod
    def _clusters(trees: Merge, features: Tensor, chosen: Tensor, total: int) -> Merge:
        """Selected tokens stay; the roots of each frame's trees merge, to ``total`` in all."""
        tokens = torch.arange(chosen.numel()).view(chosen.shape)
        target = torch.where(chosen, tokens, -1).flatten()
        kept, rows = trees.kept, trees.rows(features.float())
        is_root = torch.zeros(chosen.numel(), dtype=torch.bool)
        is_root[kept] = True
        roots = [frame[is_root[frame] & ~own] for frame, own in zip(tokens, chosen, strict=True)]
        counts = share_out(torch.tensor([len(each) for each in roots]), total)
        for each, count in zip(roots, counts.tolist(), strict=True):
            if count:
                places = torch.searchsorted(kept, each).to(rows.device)
                target[each] = each[density_peaks(rows[places], count)]
        return Merge.averaging(target)


def segment_borders(means: Tensor) -> Tensor:
    """(T - 1,) bool: where (T, D) frame ``means`` change; the least alike neighbours add cuts up to 8 segments."""
    rows = normalize(means, dim=-1)
    cosine = (rows[1:] * rows[:-1]).sum(-1).cpu()
    borders = cosine < CUT
    borders[cosine.argsort(stable=True)[: SEGMENTS - 1]] = True
    return borders


def pull(frames: Tensor, received: Tensor) -> Tensor:
    """(T, S, S) on the CPU: (1 - cosine of i and j) * attention received by j * relevance of j in its segment."""
    means = frames.mean(dim=1)
    relevance = torch.cat(
        [frames[first:end] @ means[first:end].mean(dim=0) for first, end in runs(segment_borders(means))]
    )
    rows = normalize(frames, dim=-1)
    return ((1 - rows @ rows.transpose(1, 2)) * (received.to(relevance) * relevance)[:, None, :]).cpu()


def diverse(distances: Tensor, counts: Tensor) -> Tensor:
    """(T, S) bool: ``counts`` (T,) tokens of each frame by max-min choice over (T, S, S) ``distances`` from i to j.

    First the j of the largest second smallest distance (the smallest is its own), then always the j of the largest
    smallest distance from the chosen.
    """
    frames, size = distances.shape[:2]
    chosen = torch.zeros(frames, size, dtype=torch.bool)
    everyone = torch.arange(frames)
    nearest = distances.kthvalue(min(2, size), dim=1).values
    for step in range(int(counts.max())):
        best = nearest.argmax(dim=1)
        chosen[everyone, best] |= step < counts
        added = distances[everyone, best]
        nearest = added.clone() if step == 0 else torch.minimum(nearest, added)
        nearest[chosen] = -torch.inf
    return chosen


def linked(rows: Tensor, chosen: Tensor, trees: int) -> Tensor:
    """(N,) the root that each token's tree ends in; at least ``trees`` of the tokens that are not ``chosen`` are roots.

    Args:
        rows: (T, S, D) of length 1.
        chosen: (T, S) bool: tokens outside the trees.
        trees: that must be left; the threshold rises until they are.
    """
    frames, size = chosen.shape
    cosine = (rows[1:] @ rows[:-1].transpose(1, 2)).cpu().masked_fill(chosen[:-1, None, :], -torch.inf)
    likeness, parent = cosine.max(dim=2)
    likeness = likeness.masked_fill(chosen[1:], -torch.inf).flatten()
    room = int((~chosen).sum()) - trees
    ones = torch.ones(len(likeness), dtype=torch.long)
    links = most_alike(likeness, likeness > LINK, ones, room).view(frames - 1, size)
    target = torch.arange(frames * size).view(frames, size)
    for frame in range(1, frames):
        target[frame] = torch.where(links[frame - 1], target[frame - 1][parent[frame - 1]], target[frame])
    return target.flatten()
