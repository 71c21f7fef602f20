"""Windows of still places averaged, what the tower looks at kept, and a merge within the LLM.

Shape legend: N video tokens, T frames, S tokens per frame, D width, n tokens at a layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cacovid.methods.inside_steps import InsideBaseline
from cacovid.methods.protocol import EvaluationCase
from cacovid.methods.selection import top_tokens
from cacovid.methods.sharing import share_out
from cacovid.methods.similarity import density_peaks, most_alike, same_place
from cacovid.methods.tower import tower_attention
from cacovid.models.layer_view import LayerView
from cacovid.models.reduction import Merge, Reduction

STILL, STILL_AT_LOW = 0.8, 0.65  # cosine above which a place stands still; the latter up to LOW
LOW = 0.1
CENTRE = 0.6  # a cluster's centre in its row; the rest is the mean of its members


class HoliTom(InsideBaseline):
    """Shao et al. 2025: windows of frames that save most by averaging their still places; still tokens merge by
    DPC-kNN, moving ones stay by attention received; at LLM layer 18 of 28 the less attended half merges into the other.

    Departures: shares of frames and windows are largest remainders instead of rounded up, so that the mean over
    the layers is the budget; the threshold of stillness rises where more would be averaged than that asks for.
    """

    name = "holitom"
    needs_tower_attention = True
    published_layer = 18
    share = 0.5

    def reduce(self, case: EvaluationCase, retention: float) -> Reduction:
        """Mean over the layers: the budget."""
        grid, plan = case.input.grid, self.stages(case, retention)
        received = tower_attention(self.name, case).received.cpu()
        cosine = same_place(case.input.features, grid).cpu()
        threshold = STILL_AT_LOW if retention <= LOW else STILL
        windows = best_windows(cosine > threshold)
        still = still_places(cosine, windows, threshold, grid.tokens - plan.before)
        first, groups = averaged(windows, still, grid.per_frame)
        sizes = torch.tensor([len(tokens) for tokens, _ in groups])
        kept, rows = first.kept, first.rows(case.input.features.float())
        target, weight = torch.full((grid.tokens,), -1), torch.ones(grid.tokens)
        for (tokens, stands), count in zip(groups, share_out(sizes, plan.before).tolist(), strict=True):
            if not count:
                continue
            if stands:
                centre = tokens[density_peaks(rows[torch.searchsorted(kept, tokens).to(rows.device)], count)]
                members = torch.bincount(centre, minlength=grid.tokens)[centre]
                target[tokens] = centre
                weight[tokens] = (1 - CENTRE) / members + CENTRE * (centre == tokens)
            else:
                most = tokens[top_tokens(received[tokens], count)]
                target[most] = most
        inside = MergeHalf(plan.layer, plan.behind)
        return Reduction.merged(case.encoded, first.then(Merge(target, weight)), inside)


def best_windows(still: Tensor) -> list[tuple[int, int]]:
    """(first, end) of contiguous windows of T frames that save most tokens, from (T - 1, S) bool ``still``.

    Dynamic programming over the sum of (length - 1) * places that stand still throughout; longer windows win ties.
    """
    frames = len(still) + 1
    best, start = [0] * (frames + 1), [0] * (frames + 1)
    saved: dict[tuple[int, int], int] = {}
    for first in range(frames):
        throughout = still[first:].int().cumprod(dim=0).sum(dim=1).tolist()
        saved |= {(first, first + 2 + more): (more + 1) * count for more, count in enumerate(throughout)}
    for end in range(1, frames + 1):
        sums = [best[first] + saved.get((first, end), 0) for first in range(end)]
        best[end] = max(sums)
        start[end] = sums.index(best[end])
    windows, end = [], frames
    while end:
        windows.append((start[end], end))
        end = start[end]
    return windows[::-1]


def still_places(cosine: Tensor, windows: list[tuple[int, int]], threshold: float, room: int) -> Tensor:
    """(windows, S) bool: places above ``threshold`` throughout, which rises until they save at most ``room``."""
    least = [
        cosine[first : end - 1].amin(dim=0) if end - first > 1 else torch.full((cosine.shape[1],), -torch.inf)
        for first, end in windows
    ]
    savings = torch.tensor([end - first - 1 for first, end in windows])[:, None].expand(-1, cosine.shape[1])
    likeness = torch.cat(least)
    return most_alike(likeness, likeness > threshold, savings.flatten(), room).view(len(windows), -1)


def averaged(windows: list[tuple[int, int]], still: Tensor, per_frame: int) -> tuple[Merge, list[tuple[Tensor, bool]]]:
    """Still places averaged into the first frame of their window, and the groups of tokens that are left.

    Returns:
        The merge, and (token indices, whether they stand still) of each window's still and each frame's other tokens.
    """
    tokens = torch.arange(windows[-1][1] * per_frame).view(-1, per_frame)
    target = tokens.clone()
    groups: list[tuple[Tensor, bool]] = []
    for (first, end), places in zip(windows, still, strict=True):
        target[first:end, places] = target[first, places]
        groups.append((tokens[first, places], True))
        groups += [(tokens[frame, ~places], False) for frame in range(first, end)]
    return Merge.averaging(target.flatten()), groups


@dataclass(frozen=True)
class MergeHalf:
    """At ``layer`` the ``count`` most attended tokens stay; each other one is averaged in turn into the most alike."""

    layer: int
    count: int

    def step(self, view: LayerView) -> Merge | None:
        """As :meth:`cacovid.models.reduction.Inside.step`."""
        if view.layer != self.layer or self.count >= len(view.tokens):
            return None
        kept = top_tokens(view.last_query(), self.count)
        rows = normalize(view.hidden.float(), dim=-1).cpu()
        return averaged_in_turn(kept, kept[(rows @ rows[kept].T).argmax(dim=1)])


def averaged_in_turn(kept: Tensor, nearest: Tensor) -> Merge:
    """(x + y) / 2 for each dropped x in turn, y being the row of its ``nearest`` (n,) kept token as it has become."""
    target = nearest.clone()
    target[kept] = kept
    weight = torch.ones(len(target))
    dropped = torch.ones(len(target), dtype=torch.bool)
    dropped[kept] = False
    halvings = torch.zeros(len(target))
    for index in dropped.nonzero().squeeze(1).flip(0).tolist():  # the last one is halved once
        halvings[target[index]] += 1
        weight[index] = 0.5 ** float(halvings[target[index]])
    weight[kept] = 0.5 ** halvings[kept]
    return Merge(target, weight)
