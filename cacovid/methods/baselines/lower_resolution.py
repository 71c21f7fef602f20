"""Every frame, with fewer and larger tokens.

Shape legend: N video tokens, T frames, D width, k tokens.
"""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from cacovid.errors import NotDefined
from cacovid.methods.protocol import EvaluationCase, ReducingBaseline
from cacovid.models.reduction import Reduction
from cacovid.records import TokenGrid


class LowerResolution(ReducingBaseline):
    """Each frame's grid of tokens averaged down to the largest of its shape that the budget holds.

    Pooled behind the projector, not sampled anew: most towers here resize all frames to one size, so that smaller
    frames would give as many tokens. A row stands at its block's centre.
    """

    name = "lower-resolution"

    def reduce(self, case: EvaluationCase, retention: float) -> Reduction:
        """At most the budget.

        Raises:
            NotDefined: a budget of less than a token a frame.
        """
        grid = case.input.grid
        smaller = smaller_grid(grid, case.budget(retention))

        def pooled(rows: Tensor) -> Tensor:
            planes = rows.float().reshape(grid.frames, grid.rows, grid.columns, -1).permute(0, 3, 1, 2)
            small = adaptive_avg_pool2d(planes, (smaller.rows, smaller.columns))
            return small.permute(0, 2, 3, 1).flatten(0, 2).to(rows.dtype)

        tokens = torch.arange(grid.tokens).view(grid.frames, grid.rows, grid.columns)
        rows, columns = centres(grid.rows, smaller.rows), centres(grid.columns, smaller.columns)
        keep = tokens[:, rows][:, :, columns].flatten()
        return Reduction(keep, pooled(case.encoded.features), tuple(map(pooled, case.encoded.deepstack)))


def smaller_grid(grid: TokenGrid, budget: int) -> TokenGrid:
    """As many frames, and rows and columns that shrink alike as far as whole numbers allow; at most ``budget`` tokens.

    Raises:
        NotDefined: fewer tokens than frames.
    """
    area = budget // grid.frames
    if not area:
        raise NotDefined(f"{budget} tokens are fewer than {grid.frames} frames: no resolution is that low")
    shapes = [(rows, min(grid.columns, area // rows)) for rows in range(1, min(grid.rows, area) + 1)]
    rows, columns = max(shapes, key=lambda each: (min(each[0] / grid.rows, each[1] / grid.columns), each[0] * each[1]))
    return TokenGrid(grid.frames, rows, columns)


def centres(size: int, count: int) -> Tensor:
    """(count,) ascending places of ``size`` in the middle of ``count`` blocks."""
    return (2 * torch.arange(count) + 1) * size // (2 * count)
