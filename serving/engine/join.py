"""Prompts of several requests as one batch, padded on the left; and their caches.

Shape legend: B requests, S prompt columns, R injected rows of a request, P position rows, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache


def join(packed: Sequence[dict[str, Any]], pad_token: int, least: int = 0) -> dict[str, Any]:
    """One set of model arguments from those of single requests (each with B = 1), at least ``least`` columns wide."""
    longest = max(least, *(each["input_ids"].shape[1] for each in packed))
    fills = {"input_ids": pad_token, "attention_mask": 0, "position_ids": 0}
    joined: dict[str, Any] = {
        name: torch.cat([left_padded(each[name], longest, fill) for each in packed], dim=-2)
        for name, fill in fills.items()
    }
    outputs = [each["mm_encoder_outputs"] for each in packed if "mm_encoder_outputs" in each]
    if outputs:
        (modality,) = outputs[0]
        joined["mm_encoder_outputs"] = {modality: _merged([output[modality] for output in outputs])}
    return joined


def left_padded(rows: Tensor, length: int, fill: int = 0) -> Tensor:
    """(..., S) -> (..., length)."""
    return pad(rows, (length - rows.shape[-1], 0), value=fill)


def join_caches(first: DynamicCache, second: DynamicCache) -> None:
    """Add the rows of ``second`` to ``first``; the shorter one is padded on the left with what no mask shows."""
    length = max(first.get_seq_length(), second.get_seq_length())
    for layer, other in zip(first.layers, second.layers, strict=True):
        for name in ("keys", "values"):
            both = [getattr(each, name) for each in (layer, other)]
            setattr(layer, name, torch.cat([pad(rows, (0, 0, length - rows.shape[-2], 0)) for rows in both]))


def select_rows(cache: DynamicCache, rows: Tensor, begin: int = 0) -> None:
    """Reduce a cache to ``rows`` (they may repeat), without its first ``begin`` columns."""
    for layer in cache.layers:
        layer.keys, layer.values = layer.keys[rows, :, begin:], layer.values[rows, :, begin:]


def _merged(outputs: Sequence[Any]) -> Any:  # noqa: ANN401  each family has its own output type
    """The tower outputs of all requests as one; absent fields stay absent."""
    fields = {name: _concatenated([output[name] for output in outputs]) for name in outputs[0]}
    return type(outputs[0])(**fields)


def _concatenated(parts: Sequence[Any]) -> Any:  # noqa: ANN401
    """Tensors (1, R, D) become one (1, sum of R, D): models scatter rows in order, whichever prompt they belong to.

    Tuples hold a tensor a clip; lists hold one such tuple a level.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts), dim=1)
    if isinstance(first, tuple):
        return tuple(clip for part in parts for clip in part)
    return [_concatenated(level) for level in zip(*parts, strict=True)]
