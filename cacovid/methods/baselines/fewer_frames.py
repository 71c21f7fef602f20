"""Whole frames, fewer of them."""

import torch

from cacovid.errors import NotDefined
from cacovid.methods.protocol import EvaluationCase, ReducingBaseline
from cacovid.methods.selection import spread_evenly
from cacovid.models.reduction import Reduction


class FewerFrames(ReducingBaseline):
    """All tokens of evenly spaced frames, as many whole ones as the budget holds.

    Every tower here sees the temporal steps apart, so that these are the rows that sampling fewer frames would give;
    positions and timestamps stay those of the whole clip.
    """

    name = "fewer-frames"

    def reduce(self, case: EvaluationCase, retention: float) -> Reduction:
        """At most the budget.

        Raises:
            NotDefined: a budget of less than a frame.
        """
        grid, budget = case.input.grid, case.budget(retention)
        frames = budget // grid.per_frame
        if not frames:
            raise NotDefined(f"{budget} tokens are less than a frame of {grid.per_frame}")
        tokens = torch.arange(grid.tokens).view(grid.frames, -1)
        return Reduction(tokens[spread_evenly(frames, grid.frames)].flatten())
