"""What a vision tower looked at, recorded while it runs: for methods that keep what it attends to.

Shape legend: N video tokens, T frames, P patches a frame (and class tokens in front), H heads, d head width.
"""

from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor

from cacovid.models.listening import attention_weights
from cacovid.records import TokenGrid


@dataclass(frozen=True, eq=False)
class TowerAttention:
    """Attention received and keys in the layer whose output the projector reads, pooled like the tokens."""

    received: Tensor  # (N,) float32: mean over heads and over the queries of the frame
    keys: Tensor  # (N, d): mean over heads


class Recorder:
    """Listens to one attention module of the tower."""

    def __init__(self) -> None:
        self._received: list[Tensor] = []
        self._keys: list[Tensor] = []

    def __call__(self, query: Tensor, key: Tensor, scale: float) -> None:
        """Take in the frames of one call, one after the other: all weights at once would take gigabytes."""
        for queries, keys in zip(query, key, strict=True):
            self._received.append(attention_weights(queries, keys, scale).mean(dim=(0, 1)))
            self._keys.append(keys.mean(dim=0))

    def patches(self, frames: int) -> Tensor:
        """(T, P, 1 + d) float32: attention received, then the keys."""
        rows = torch.cat([torch.cat(self._received)[:, None], torch.cat(self._keys).float()], dim=1)
        return rows.view(frames, -1, rows.shape[1])


def pooled_blocks(patches: Tensor, grid: TokenGrid) -> Tensor:
    """(N, d) means over the square block of patches that each token stands for; class tokens in front are left out.

    Args:
        patches: (T, P, d) row by row.
        grid: of the tokens.
    """
    side = isqrt(patches.shape[1] // grid.per_frame)
    own = patches[:, patches.shape[1] - grid.per_frame * side**2 :]
    blocks = own.reshape(grid.frames, grid.rows, side, grid.columns, side, -1)
    return blocks.mean(dim=(2, 4)).flatten(0, 2)


def pooled_runs(patches: Tensor, grid: TokenGrid) -> Tensor:
    """As :func:`pooled_blocks`, for towers that keep the patches of one token together."""
    return patches.reshape(grid.tokens, -1, patches.shape[2]).mean(dim=1)
