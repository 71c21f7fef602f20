"""Evenly spaced tokens."""

from torch import Tensor

from cacovid.methods.protocol import Baseline, EvaluationCase
from cacovid.methods.selection import spread_evenly


class UniformTokens(Baseline):
    """k tokens spread evenly over the clip in token order."""

    name = "uniform"

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """(k,) ascending token indices."""
        return spread_evenly(case.budget(retention), case.input.grid.tokens)
