"""Tokens that the last prompt column attends to in the LLM's first layers."""

import torch

from cacovid.errors import NotDefined
from cacovid.methods.inside_steps import InsideBaseline, KeepMostAttended
from cacovid.methods.protocol import EvaluationCase
from cacovid.methods.sharing import cut_layer
from cacovid.models.reduction import Reduction


class FastV(InsideBaseline):
    """All tokens up to layer 2 of 28, then the most attended of the layer before (Chen et al. 2024).

    The budget is the mean over the layers: what the first layers spend on all tokens is missing behind them.
    """

    name = "fastv"
    published_layer = 2

    def reduce(self, case: EvaluationCase, retention: float) -> Reduction:
        """Mean over the layers: the budget.

        Raises:
            NotDefined: the first layers alone spend more than the budget.
        """
        tokens = case.input.grid.tokens
        layer = cut_layer(self.published_layer, self.layers, len(case.encoded.deepstack))
        return Reduction(torch.arange(tokens), inside=KeepMostAttended(layer, self.left(case, retention, layer)))

    def left(self, case: EvaluationCase, retention: float, layer: int) -> int:
        """Tokens behind ``layer``."""
        rest = case.budget(retention) * self.layers - layer * case.input.grid.tokens
        count = rest // (self.layers - layer)
        if count < 1:
            raise NotDefined(
                f"{layer} of {self.layers} layers see all tokens, a mean of at least {layer / self.layers:.1%}"
            )
        return count


class FastVBehind(FastV):
    """FastV with the budget as its authors state it: tokens kept behind the cut. Its mean share is larger."""

    name = "fastv-behind"

    def left(self, case: EvaluationCase, retention: float, layer: int) -> int:
        """Tokens behind ``layer``."""
        return case.budget(retention)
