"""A compressed prompt as what vLLM takes instead of raw media.

Shape legend: S columns of the compressed prompt, R injected rows, D width.
"""

import hashlib
from typing import Any

import torch
from torch import Tensor
from vllm.inputs.engine import mm_input, tokens_input
from vllm.multimodal.inputs import (
    MultiModalBatchedField,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    MultiModalKwargsItems,
    PlaceholderRange,
)

from cacovid.config import Numbering
from cacovid.models.encoded import Encoded
from cacovid.models.packing import injected_rows, kept_columns, packed_positions
from serving.vllm.names import MODALITY, NEXT, POSITIONS, ROWS


def vllm_prompt(encoded: Encoded, kept: Tensor, positions: Numbering) -> Any:  # noqa: ANN401  a TypedDict of vLLM's
    """The prompt with the video tokens ``kept`` (k,) alone, for ``AsyncLLM.generate``."""
    keep = kept[None].to(encoded.input_ids.device)
    columns = kept_columns(encoded, keep)
    tokens = encoded.input_ids[columns[0]].tolist()
    injected = torch.isin(columns[0], torch.cat([encoded.video_columns, encoded.pinned_columns])).cpu()
    if not injected.any():
        return tokens_input(tokens)
    numbers = _three_rows(packed_positions(encoded, columns, positions))
    rows = torch.cat([injected_rows(encoded, keep)[0], *(level[keep[0]] for level in encoded.deepstack)], dim=1).cpu()
    (places,) = injected.nonzero(as_tuple=True)
    first, last = int(places[0]), int(places[-1])
    item = {ROWS: rows, POSITIONS: numbers, NEXT: numbers[0, -1] + 1}
    return mm_input(
        tokens,
        MultiModalKwargsItems({MODALITY: [_item(item)]}),
        {MODALITY: [_digest(rows, places, numbers)]},
        {MODALITY: [PlaceholderRange(first, last - first + 1, injected[first : last + 1])]},
    )


def _three_rows(positions: Tensor) -> Tensor:
    """(3, S) on the CPU from (1, S), or from (4, 1, S) of M-RoPE, whose first row numbers text."""
    rows = positions[1:, 0] if positions.ndim == 3 else positions.expand(3, -1)
    return rows.contiguous().cpu()


def _item(values: dict[str, Tensor]) -> MultiModalKwargsItem:
    # Positions are read on the CPU, when a request comes to vLLM's worker.
    return MultiModalKwargsItem(
        {
            name: MultiModalFieldElem(data=value, field=MultiModalBatchedField(keep_on_cpu=name != ROWS))
            for name, value in values.items()
        }
    )


def _digest(rows: Tensor, places: Tensor, numbers: Tensor) -> str:
    """Hash of all that tokens do not say of a prompt: vLLM's prefix cache knows these two alone.

    Text behind the last jump of the positions is numbered on from there: prompts that differ in it alone share
    the key-value cache of what comes before.
    """
    jumps = (numbers.diff(dim=1) != 1).any(dim=0).nonzero()
    settled = max(int(places[-1]), int(jumps[-1]) + 1 if len(jumps) else 0) + 1
    digest = hashlib.blake2b(digest_size=16)
    for tensor in (rows, places, numbers[:, :settled]):
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
