"""Packed prompts of several requests as one batch: padded on the left.

Shape legend: B requests, S prompt columns, R injected rows (equal for all), P position rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def join(packed: Sequence[dict[str, Any]], pad_token: int) -> dict[str, Any]:
    """One set of model arguments from those of single requests (each with B = 1, equal R and P)."""
    longest = max(each["input_ids"].shape[1] for each in packed)
    fills = {"input_ids": pad_token, "attention_mask": 0, "position_ids": 0}
    joined: dict[str, Any] = {}
    for name, fill in fills.items():
        rows = [_padded(each[name], longest, fill) for each in packed]
        joined[name] = torch.cat(rows, dim=-2)
    if "mm_encoder_outputs" in packed[0]:
        (modality,) = packed[0]["mm_encoder_outputs"]
        joined["mm_encoder_outputs"] = {modality: _merged([each["mm_encoder_outputs"][modality] for each in packed])}
    return joined


def _padded(rows: Tensor, length: int, fill: int) -> Tensor:
    """(..., S) -> (..., length), filled on the left."""
    return torch.nn.functional.pad(rows, (length - rows.shape[-1], 0), value=fill)


def _merged(outputs: Sequence[Any]) -> Any:  # noqa: ANN401  each family has its own output type
    """The tower outputs of all requests as one; absent fields stay absent."""
    fields = {name: _concatenated([output[name] for output in outputs]) for name in outputs[0]}
    return type(outputs[0])(**fields)


def _concatenated(parts: Sequence[Any]) -> Any:  # noqa: ANN401
    """Tensors are joined along the batch; tuples hold a tensor a clip; lists hold one such tuple a level."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(list(parts))
    if isinstance(first, tuple):
        return tuple(clip for part in parts for clip in part)
    return [_concatenated(level) for level in zip(*parts, strict=True)]
