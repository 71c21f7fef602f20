"""Tokens that changed since the frame before."""

import torch
from torch import Tensor

from cacovid.errors import NotDefined
from cacovid.methods.protocol import Baseline, EvaluationCase
from cacovid.methods.selection import top_tokens
from cacovid.methods.similarity import same_place


class EVS(Baseline):
    """Efficient Video Sampling, vLLM's ``--video-pruning-rate``.

    Keeps the tokens least like the same place one frame earlier, over the whole clip; the first frame counts as most
    dissimilar of all, so that it is always kept. Ties go to the lower index.
    """

    name = "evs"

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """(k,) ascending token indices.

        Raises:
            NotDefined: a budget below the first frame.
        """
        grid, count = case.input.grid, case.budget(retention)
        if count < grid.per_frame:
            raise NotDefined(f"EVS keeps the first frame: {count} tokens are fewer than its {grid.per_frame}")
        change = 1 - same_place(case.input.features, grid).cpu()
        return top_tokens(torch.cat([torch.full((1, grid.per_frame), torch.inf), change]).flatten(), count)
