"""Still places averaged over time, alike tokens merged, the rest pruned by the question within the LLM.

Shape legend: N video tokens, T frames, S tokens per frame, D width.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cacovid.methods.inside_steps import InsideBaseline, KeepMostAttended
from cacovid.methods.protocol import EvaluationCase
from cacovid.methods.sharing import share_out
from cacovid.methods.similarity import by_frame, density_peaks, most_alike, runs
from cacovid.models.reduction import Merge, Reduction
from cacovid.records import TokenGrid

STILL = 0.8  # mean cosine over the pairs of frames from which a place stands still
CLUSTERS = 0.25  # of the frames


class PruneVID(InsideBaseline):
    """Huang et al. 2024: scenes by clustering frames; in each the still places become one token, then still tokens of
    a scene and moving ones of a frame merge by DPC-kNN; at LLM layer 10 of 28, 40 % stay by the text's attention.

    Departures: DPC-kNN merges to what the budget needs instead of to half; the threshold of stillness rises where
    more would be averaged than the budget asks for.
    """

    name = "prunevid"
    published_layer = 10
    share = 0.4

    def reduce(self, case: EvaluationCase, retention: float) -> Reduction:
        """Mean over the layers: the budget."""
        plan, grid = self.stages(case, retention), case.input.grid
        frames = by_frame(case.input.features, grid)
        scenes = list(runs(scene_borders(frames.mean(dim=1))))
        still = still_places(frames, scenes, grid.tokens - plan.before)
        first = Merge.averaging(still_targets(scenes, still, grid))
        second = clusters(first, case.input.features, scenes, still, grid, plan.before)
        inside = KeepMostAttended(plan.layer, plan.behind, by_text=True)
        return Reduction.merged(case.encoded, first.then(second), inside)


def scene_borders(means: Tensor) -> Tensor:
    """(T - 1,) bool: whether the cluster of (T, D) frame ``means`` changes behind each frame."""
    labels = density_peaks(means, max(1, int(CLUSTERS * len(means))))
    return labels[1:] != labels[:-1]


def still_places(frames: Tensor, scenes: list[tuple[int, int]], room: int) -> Tensor:
    """(scenes, S) bool: which places of (T, S, D) ``frames`` stand still in each scene, saving at most ``room``."""
    rows = normalize(frames, dim=-1)
    likeness, savings = [], []
    for first, end in scenes:
        length = end - first
        pairs = rows[first:end].sum(dim=0).square().sum(-1) - rows[first:end].square().sum((0, 2))
        likeness.append(pairs.cpu() / max(1, length * (length - 1)))
        savings.append(torch.full((frames.shape[1],), length - 1))
    cosine = torch.cat(likeness)
    return most_alike(cosine, cosine > STILL, torch.cat(savings), room).view(len(scenes), -1)


def still_targets(scenes: list[tuple[int, int]], still: Tensor, grid: TokenGrid) -> Tensor:
    """(N,) where each token goes when still places go into the first frame of their scene."""
    target = torch.arange(grid.tokens).view(grid.frames, -1)
    for (first, end), places in zip(scenes, still, strict=True):
        target[first:end, places] = target[first, places]
    return target.flatten()


def clusters(
    averaged: Merge, features: Tensor, scenes: list[tuple[int, int]], still: Tensor, grid: TokenGrid, total: int
) -> Merge:
    """The second merge, to ``total`` tokens: clusters of a scene's still tokens and of a frame's moving ones."""
    tokens = torch.arange(grid.tokens).view(grid.frames, -1)
    groups: list[Tensor] = []
    for (first, end), places in zip(scenes, still, strict=True):
        groups.append(tokens[first, places])
        groups += [tokens[frame, ~places] for frame in range(first, end)]
    kept, rows = averaged.kept, averaged.rows(features.float())
    target = torch.full((grid.tokens,), -1)
    counts = share_out(torch.tensor([len(group) for group in groups]), total)
    for group, count in zip(groups, counts.tolist(), strict=True):
        if count == len(group):
            target[group] = group
        elif count:
            target[group] = group[density_peaks(rows[torch.searchsorted(kept, group).to(rows.device)], count)]
    return Merge.averaging(target)
