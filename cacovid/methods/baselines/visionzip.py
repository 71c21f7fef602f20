"""Tokens that the vision tower looks at, and means of the others.

Shape legend: N video tokens, T frames, S tokens per frame, D width.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cacovid.methods.protocol import EvaluationCase, ReducingBaseline
from cacovid.methods.selection import top_tokens
from cacovid.methods.sharing import evenly
from cacovid.methods.tower import tower_attention
from cacovid.models.reduction import Merge, Reduction

CONTEXTUAL = 10 / 64  # of a frame's tokens: the paper's 54 dominant and 10 contextual ones


class VisionZip(ReducingBaseline):
    """Dominant tokens by attention received, the others merged into evenly spaced targets (Yang et al. 2024).

    A target's row is itself plus the mean of those whose nearest target, by the cosine of head-mean keys, it is.
    Departures: merged after the projector instead of before; attention received from all patches for every tower,
    those with a class token included; the layer that the projector reads, whichever it is.
    """

    name = "visionzip"
    needs_tower_attention = True

    def reduce(self, case: EvaluationCase, retention: float) -> Reduction:
        """Exactly the budget, spread evenly over the frames."""
        grid, tower = case.input.grid, tower_attention(self.name, case)
        received = tower.received.cpu().view(grid.frames, -1)
        keys = normalize(tower.keys.float().cpu(), dim=-1).view(grid.frames, grid.per_frame, -1)
        target = torch.full((grid.frames, grid.per_frame), -1)
        weight = torch.ones(grid.frames, grid.per_frame)
        for frame, count in enumerate(evenly(case.budget(retention), grid.frames).tolist()):
            zipped(received[frame], keys[frame], count, target[frame], weight[frame])
        firsts = torch.arange(grid.frames)[:, None] * grid.per_frame
        target = torch.where(target >= 0, target + firsts, -1)
        return Reduction.merged(case.encoded, Merge(target.flatten(), weight.flatten()))


def zipped(received: Tensor, keys: Tensor, count: int, target: Tensor, weight: Tensor) -> None:
    """Fill one frame's ``target`` (S,) and ``weight`` (S,) so that ``count`` tokens are left."""
    contextual = round(count * CONTEXTUAL)
    dominant = top_tokens(received, count - contextual)
    target[dominant] = dominant
    if not contextual:
        return
    others = (target < 0).nonzero().squeeze(1)
    places = torch.arange(contextual) * (len(others) // contextual)
    target[others] = others[places[(keys[others] @ keys[others[places]].T).argmax(dim=1)]]
    target[others[places]] = others[places]
    merged = torch.ones(len(others), dtype=torch.bool)
    merged[places] = False
    merged = others[merged]
    sizes = torch.bincount(target[merged], minlength=len(target))
    weight[merged] = 1.0 / sizes[target[merged]].float()
