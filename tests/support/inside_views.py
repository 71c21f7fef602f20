"""Made-up views of an LLM layer: hidden states and attention by hand, no model needed."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class MadeView:
    """As :class:`cacovid.models.layer_view.LayerView`, with the attention given."""

    layer: int
    layers: int
    tokens: Tensor
    hidden: Tensor
    attention: Tensor
    text_attention: Tensor
    counts: tuple[int, ...]

    def last_query(self) -> Tensor:
        return self.attention

    def text_queries(self) -> Tensor:
        return self.text_attention


def made_view(
    layer: int,
    attention: list[float],
    *,
    layers: int = 28,
    tokens: list[int] | None = None,
    hidden: Tensor | None = None,
    text_attention: list[float] | None = None,
    counts: tuple[int, ...] | None = None,
) -> MadeView:
    count = len(attention)
    return MadeView(
        layer,
        layers,
        torch.arange(count) if tokens is None else torch.tensor(tokens),
        torch.zeros(count, 2) if hidden is None else hidden,
        torch.tensor(attention),
        torch.tensor(attention if text_attention is None else text_attention),
        (count,) * layer if counts is None else counts,
    )
