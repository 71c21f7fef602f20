"""How a budget of tokens is shared out: among groups, and between the layers before and behind a cut.

Shape legend: N video tokens, L layers of the LLM, k tokens of the budget.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from cacovid.errors import NotDefined
from cacovid.methods.selection import spread_evenly

DEPTH = 28  # layers of the models that the methods' authors give their layers for


def share_out(sizes: Tensor, total: int) -> Tensor:
    """(G,) int64 shares of ``total``, proportional to ``sizes`` (G,), at most them: largest remainders.

    Ties go to the lower index. ``total`` beyond the sum gives the sizes.
    """
    whole = int(sizes.sum())
    if total >= whole:
        return sizes.clone()
    products = sizes * total
    shares = products // whole
    largest = (products % whole).argsort(descending=True, stable=True)
    shares[largest[: total - int(shares.sum())]] += 1
    return shares


def evenly(total: int, groups: int) -> Tensor:
    """(groups,) int64 near-equal counts that sum to ``total``; what is left over is spread evenly."""
    counts = torch.full((groups,), total // groups)
    counts[spread_evenly(total % groups, groups)] += 1
    return counts


class Stages(NamedTuple):
    """Tokens of a method with one cut within the LLM."""

    layer: int  # the first that sees fewer
    before: int  # tokens in the layers before it
    behind: int  # tokens from it on


def cut_layer(published: int, layers: int, deepstack: int) -> int:
    """A layer given for :data:`DEPTH` layers at the same depth of ``layers``, behind the ``deepstack`` levels.

    Raises:
        NotDefined: every layer but the last adds a deepstack level.
    """
    layer = max(1, round(published * layers / DEPTH), deepstack)
    if layer >= layers:
        raise NotDefined(f"a cut within the LLM needs a layer behind {max(deepstack, 1)} of its {layers}")
    return layer


def stages(budget: int, tokens: int, layers: int, layer: int, share: float) -> Stages:
    """The most tokens whose mean over the layers is at most ``budget``, ``share`` of them from ``layer`` on.

    Rounding is settled behind the cut: the mean falls short of the budget by less than a token.
    """
    before = min(tokens, int(budget * layers / (layer + (layers - layer) * share) + 1e-9))
    while before > 1 and budget * layers - before * layer < layers - layer:
        before -= 1
    return Stages(layer, before, min(before, (budget * layers - before * layer) // (layers - layer)))
