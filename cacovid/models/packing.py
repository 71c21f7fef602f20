"""Gathering the retained part of an encoded prompt, for a batch of combinations at once.

Shape legend: B combinations, k retained of N video tokens, M pinned rows, R = k + M injected rows,
Lt text columns, S = Lt + k columns of the compressed prompt, P position rows, D width.
"""

import torch
from torch import Tensor

from cacovid.config import Numbering
from cacovid.models.encoded import Encoded


def kept_columns(encoded: Encoded, keep: Tensor) -> Tensor:
    """(B, S) ascending prompt columns that remain when ``keep`` (B, k) of the video tokens do."""
    text = encoded.text_columns.expand(keep.shape[0], -1)
    return torch.cat([text, encoded.video_columns[keep]], dim=1).sort(dim=1).values


def injected_rows(encoded: Encoded, keep: Tensor) -> Tensor:
    """(B, R, D) rows for the remaining placeholder columns: retained tokens and pinned rows, in prompt order."""
    rows = rows_of(encoded.features, keep)
    if encoded.pinned.shape[0] == 0:
        return rows
    batch = keep.shape[0]
    columns = torch.cat([encoded.video_columns[keep], encoded.pinned_columns.expand(batch, -1)], dim=1)
    rows = torch.cat([rows, encoded.pinned.expand(batch, -1, -1)], dim=1)
    return rows.take_along_dim(columns.argsort(dim=1).unsqueeze(-1), dim=1)


def rows_of(tokens: Tensor, keep: Tensor) -> Tensor:
    """(B, k, D) rows of ``tokens`` (N, D) on the device of ``keep``: long videos' stay on the CPU."""
    return tokens[keep.to(tokens.device)].to(keep.device)


def packed_positions(encoded: Encoded, columns: Tensor, positions: Numbering) -> Tensor:
    """Position ids of the compressed prompt: (B, S), or (4, B, S) for M-RoPE.

    ``original`` keeps every column's own position (the paper's choice); ``contiguous`` renumbers
    them 0..S-1, for M-RoPE on every axis, as if all were text. The text row of M-RoPE, which
    numbers the columns of the sequence itself, is contiguous in both.
    """
    batch, length = columns.shape
    renumbered = torch.arange(length, device=columns.device)
    rows = encoded.position_ids.shape[0]
    if positions == "contiguous":
        return renumbered.expand(batch, length) if rows == 1 else renumbered.expand(rows, batch, length)
    if rows == 1:
        return encoded.position_ids[0][columns]
    return torch.cat([renumbered.expand(1, batch, length), encoded.position_ids[1:, columns]])
