"""Tokens like the frame before merge in the LLM's first layers, the rest are pruned once.

Shape legend: n tokens at a layer, D width, S tokens per frame.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cacovid.errors import NotDefined
from cacovid.methods.inside_steps import InsideBaseline
from cacovid.methods.protocol import EvaluationCase
from cacovid.methods.selection import top_tokens
from cacovid.methods.similarity import most_alike
from cacovid.models.layer_view import LayerView
from cacovid.models.reduction import Merge, Reduction

ALIKE = 0.6  # cosine from which a token merges
FEW = 0.1  # share of tokens that can merge below which the rest is pruned


class FrameFusion(InsideBaseline):
    """Fu et al. 2025: at the input and before each early layer, runs of alike tokens of one place are averaged into the
    first; once few can merge, pruned once by the last column's attention to what is left of the budget.

    The budget is the mean over the layers. Where merging alone would go below it, the least alike stay.
    """

    name = "framefusion"
    at_mean = True

    def reduce(self, case: EvaluationCase, retention: float) -> Reduction:
        """Mean over the layers: the budget.

        Raises:
            NotDefined: layers that see all merged tokens spend more than the budget.
        """
        grid, budget = case.input.grid, case.budget(retention)
        step = Fusing(budget, grid.per_frame, self.layers, self.at_mean)
        merge = step.fused(case.input.features, torch.arange(grid.tokens))
        tokens = len(merge.kept)
        first = max(1, len(case.encoded.deepstack))  # the first layer before which tokens can go
        if self.at_mean and first * tokens > budget * self.layers - (self.layers - first):
            raise NotDefined(
                f"{first} of {self.layers} layers see {tokens} of {grid.tokens} tokens, too many for a mean of {budget}"
            )
        return Reduction.merged(case.encoded, merge, inside=step)


class FrameFusionBehind(FrameFusion):
    """FrameFusion whose budget is what is left behind the pruning. Its mean share is larger."""

    name = "framefusion-behind"
    at_mean = False


@dataclass
class Fusing:
    """The steps of one question."""

    budget: int
    per_frame: int
    layers: int
    at_mean: bool
    merging: bool = True
    pruned: bool = False

    def step(self, view: LayerView) -> Merge | None:
        """As :meth:`cacovid.models.reduction.Inside.step`."""
        if self.pruned:
            return None
        if self.merging:
            merge = self.fused(view.hidden, view.tokens)
            if self.merging and self._affordable(len(merge.kept), view):
                return merge
        self.pruned = True
        left = self.budget
        if self.at_mean:
            left = (self.budget * self.layers - sum(view.counts)) // (self.layers - view.layer)
        if left >= len(view.tokens):
            return None
        return Merge.keeping(top_tokens(view.last_query(), left), len(view.tokens))

    def fused(self, rows: Tensor, tokens: Tensor) -> Merge:
        """Runs of alike ``rows`` (n, D) at one place averaged; nothing, and the end of merging, where few are alike.

        Args:
            rows: of the tokens.
            tokens: (n,) int64 ascending grid indices.
        """
        count = len(tokens)
        order = (tokens % self.per_frame * (int(tokens.max()) + 1) + tokens).argsort()  # place by place along time
        unit = normalize(rows.float(), dim=-1).cpu()[order]
        cosine = (unit[1:] * unit[:-1]).sum(-1)
        place = tokens[order] % self.per_frame
        cosine = torch.where(place[1:] == place[:-1], cosine, -torch.inf)
        if count <= self.budget or int((cosine >= ALIKE).sum()) < FEW * count:
            self.merging = False
            return Merge.keeping(torch.arange(count), count)
        joined = most_alike(cosine, cosine >= ALIKE, torch.ones(count - 1, dtype=torch.long), count - self.budget)
        run = torch.cat([torch.ones(1, dtype=torch.bool), ~joined])
        firsts = order[run.nonzero().squeeze(1)]
        target = torch.empty(count, dtype=torch.long)
        target[order] = firsts[run.long().cumsum(0) - 1]
        return Merge.averaging(target)

    def _affordable(self, tokens: int, view: LayerView) -> bool:
        """Whether this layer can still see ``tokens`` before pruning: later layers need one each at least."""
        last = view.layer + 1 >= self.layers
        if not self.at_mean:
            return not last
        after = self.budget * self.layers - sum(view.counts) - tokens
        return not last and after >= self.layers - view.layer - 1
