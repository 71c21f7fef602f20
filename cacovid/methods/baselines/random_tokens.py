"""Random tokens."""

import torch
from torch import Tensor

from cacovid.methods.protocol import Baseline, EvaluationCase


class RandomTokens(Baseline):
    """k tokens drawn uniformly without replacement."""

    name = "random"

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """(k,) ascending token indices."""
        order = torch.randperm(case.input.grid.tokens, generator=case.generator(self.name, retention))
        return order[: case.budget(retention)].sort().values
