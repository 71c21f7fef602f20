"""Policy inputs of one grid, padded into a batch.

Shape legend: B batch, N video tokens, Lt text columns (longest of the batch), L = N + Lt prompt
columns, P position rows (1, or 3 for M-RoPE), D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cacovid.records import PolicyInput, TokenGrid


@dataclass(frozen=True)
class PolicyBatch:
    """Several policy inputs of the same grid; the text is padded behind its end.

    A padded text token gets a prompt column behind the item's own prompt, so that video and text
    columns together are a permutation of ``0..L-1`` for every item.
    """

    features: Tensor  # (B, N, D)
    text: Tensor  # (B, Lt, D), zeros where padded
    text_mask: Tensor  # (B, Lt) bool, True for real tokens
    video_columns: Tensor  # (B, N) int64
    text_columns: Tensor  # (B, Lt) int64
    position_ids: Tensor  # (P, B, L) int64, zeros where padded
    prompt_mask: Tensor  # (B, L) bool, True for real columns
    grid: TokenGrid

    def to(self, device: torch.device | str) -> "PolicyBatch":
        """The same batch on ``device``."""
        return replace(self, **{name: each.to(device) for name, each in vars(self).items() if name != "grid"})

    def prompt(self) -> Tensor:
        """(B, L, D) the whole prompt in its own order: text, video tokens, text."""
        batch, _, width = self.features.shape
        columns = torch.cat([self.video_columns, self.text_columns], dim=1)
        rows = torch.cat([self.features, self.text.to(self.features.dtype)], dim=1)
        empty = rows.new_zeros(batch, columns.shape[1], width)
        return empty.scatter(1, columns[..., None].expand_as(rows), rows)


def collate(inputs: Sequence[PolicyInput]) -> PolicyBatch:
    """Pad ``inputs`` (at least one, all of one grid and width) into a batch on their device."""
    assert inputs, "collate needs at least one input"
    grid = inputs[0].grid
    assert all(item.grid == grid for item in inputs), "one batch holds one grid: use group_by_grid"
    lengths = torch.tensor([item.text.shape[0] for item in inputs])
    longest = int(lengths.max())
    text_mask = torch.arange(longest)[None, :] < lengths[:, None]
    total = grid.tokens + longest
    prompt_mask = torch.arange(total)[None, :] < (lengths + grid.tokens)[:, None]
    device = inputs[0].features.device
    return PolicyBatch(
        features=_stacked([item.features for item in inputs]),
        text=pad_sequence([item.text for item in inputs], batch_first=True),
        text_mask=text_mask.to(device),
        video_columns=torch.stack([item.video_columns for item in inputs]),
        text_columns=torch.stack([_padded_columns(item, longest) for item in inputs]),
        position_ids=torch.stack([_padded_positions(item, total) for item in inputs], dim=1),
        prompt_mask=prompt_mask.to(device),
        grid=grid,
    )


def frames_of(item: PolicyInput, frames: slice) -> PolicyInput:
    """Some frames (``start`` and ``stop`` given) of an input, as if its prompt began with them and the text followed.

    For networks that do not read where a token stands in the prompt.
    """
    size = item.grid.per_frame
    rows = item.features[frames.start * size : frames.stop * size]
    columns = torch.arange(rows.shape[0] + item.text.shape[0], device=item.text.device)
    return replace(
        item,
        features=rows.to(item.text.device),
        video_columns=columns[: rows.shape[0]],
        text_columns=columns[rows.shape[0] :],
        position_ids=columns[None],
        grid=item.grid._replace(frames=frames.stop - frames.start),
    )


def group_by_grid(inputs: Sequence[PolicyInput]) -> dict[TokenGrid, list[int]]:
    """Indices into ``inputs`` by grid, in order of first appearance."""
    groups: dict[TokenGrid, list[int]] = {}
    for index, item in enumerate(inputs):
        groups.setdefault(item.grid, []).append(index)
    return groups


def _stacked(rows: Sequence[Tensor]) -> Tensor:
    """(B, N, D) of B times (N, D); a single clip, up to 90 MB, is not copied."""
    return rows[0][None] if len(rows) == 1 else torch.stack(list(rows))


def _padded_columns(item: PolicyInput, longest: int) -> Tensor:
    """(Lt,) text columns; padded tokens take the free columns behind the prompt."""
    free = torch.arange(item.text.shape[0], longest, device=item.text_columns.device) + item.grid.tokens
    return torch.cat([item.text_columns.long(), free])


def _padded_positions(item: PolicyInput, total: int) -> Tensor:
    """(P, L) position ids, zeros behind the prompt."""
    rows, length = item.position_ids.shape
    return torch.cat([item.position_ids.long(), item.position_ids.new_zeros(rows, total - length).long()], dim=1)
