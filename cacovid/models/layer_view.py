"""What a step within the LLM may look at.

Shape legend: n video tokens left, D width, H heads, Q queries.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cacovid.models.listening import attention_weights


@dataclass(frozen=True, eq=False)
class LayerView:
    """What a step may look at before an LLM layer."""

    layer: int  # that the tokens are about to enter, from 1
    layers: int
    tokens: Tensor  # (n,) int64 ascending grid indices on the CPU
    hidden: Tensor  # (n, D)
    counts: tuple[int, ...]  # video tokens at layers 0 .. layer - 1
    _columns: Tensor  # (n,) places of the tokens among the columns of the layer before
    _heard: tuple[Tensor, Tensor, float]  # its queries, keys, scale

    def last_query(self) -> Tensor:
        """(n,) float32 on the CPU: attention of the last prompt column in the layer before, mean over heads."""
        query, key, scale = self._heard
        weights = attention_weights(query[0, :, -1:], key[0], scale)[:, 0]
        return weights.mean(dim=0).cpu()[self._columns]

    def text_queries(self) -> Tensor:
        """(n,) float32 on the CPU: most attention of a head and a text column behind the video, in the layer before."""
        query, key, scale = self._heard
        first = int(self._columns[-1]) + 1
        rows = torch.arange(first, query.shape[2], device=query.device)
        later = torch.arange(key.shape[2], device=query.device)[None, :] > rows[:, None]
        weights = attention_weights(query[0][:, rows], key[0], scale, unseen=later)
        return weights.amax(dim=(0, 1)).cpu()[self._columns]
