"""Diverse tokens.

Shape legend: N video tokens, D width, k retained tokens.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cacovid.methods.protocol import Baseline, EvaluationCase

BLOCK = 1024  # rows whose similarities to all others are held at once


class DivPrune(Baseline):
    """Max-min diversity of the projected features (Alvar et al. 2025, DivPrune).

    Distance 1 - cosine. The first token is the one farthest from its nearest neighbour; then
    always the token farthest from the chosen set; ties go to the lower index.
    """

    name = "divprune"

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """(k,) ascending token indices."""
        return max_min_diverse(case.input.features, case.budget(retention)).sort().values


def max_min_diverse(features: Tensor, count: int) -> Tensor:
    """(count,) int64 indices of (N, D) ``features`` in the order of greedy max-min choice.

    Memory is O(N * D): one row of distances a step; the first token's neighbours in blocks.
    """
    rows = normalize(features.float(), dim=-1)
    chosen = torch.empty(count, dtype=torch.long)
    chosen[0] = _farthest_from_neighbour(rows)
    nearest = 1 - rows @ rows[chosen[0]]
    nearest[chosen[0]] = -torch.inf
    for step in range(1, count):
        best = int(nearest.argmax())
        chosen[step] = best
        torch.minimum(nearest, 1 - rows @ rows[best], out=nearest)
        nearest[best] = -torch.inf
    return chosen


def _farthest_from_neighbour(rows: Tensor) -> int:
    """Index of the unit row whose largest cosine to another row is smallest."""
    count = rows.shape[0]
    if count == 1:
        return 0
    closest = torch.empty(count, device=rows.device)
    for start in range(0, count, BLOCK):
        similarity = rows[start : start + BLOCK] @ rows.T
        here = torch.arange(similarity.shape[0], device=rows.device)
        similarity[here, here + start] = -torch.inf
        closest[start : start + BLOCK] = similarity.amax(dim=1)
    return int(closest.argmin())
