"""A prompt with its video, encoded once: what is compressed, cached and answered from.

Shape legend: L prompt columns, N video tokens, M pinned rows (newlines and the like), Lt = L - N text
columns, D width of the language model, P position rows (1, or 4 for M-RoPE: text, time, height, width).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cacovid.errors import UserError
from cacovid.models.tower_attention import TowerAttention
from cacovid.records import PolicyInput, TokenGrid, tensor_bytes


@dataclass(frozen=True)
class VideoFeatures:
    """All that the vision tower and the processor made of one clip; what the embedding cache stores.

    It depends on the clip and the model alone, not on the question.
    """

    features: Tensor  # (N, D) projected video tokens, in grid order
    grid: TokenGrid
    placeholder: str  # text that stands for the clip in the prompt: N + M video tokens, timestamps, ...
    pinned: Tensor  # (M, D) rows injected like video tokens that are never dropped
    pinned_slots: tuple[int, ...] = ()  # (M,) their places among the clip's N + M video columns, ascending
    deepstack: tuple[Tensor, ...] = ()  # each (N, D): added to the video columns after the first layers
    seconds_per_step: float = 1.0  # time between two temporal steps
    tower: TowerAttention | None = None  # where its recording was asked for
    stays: bool = False  # its rows are too many for the device: they stay on the CPU until some are chosen

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, for storage."""
        levels = {f"deepstack.{level}": rows for level, rows in enumerate(self.deepstack)}
        tower = {} if self.tower is None else {f"tower.{name}": rows for name, rows in vars(self.tower).items()}
        return {"features": self.features, "pinned": self.pinned, **levels, **tower}

    def metadata(self) -> dict[str, Any]:
        """Everything else, as plain JSON values."""
        return {
            "grid": list(self.grid),
            "placeholder": self.placeholder,
            "pinned_slots": list(self.pinned_slots),
            "seconds_per_step": self.seconds_per_step,
        }

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> "VideoFeatures":
        """The inverse of :meth:`tensors` and :meth:`metadata`. Raises KeyError where a part is missing."""
        levels = sum(name.startswith("deepstack.") for name in tensors)
        return cls(
            features=tensors["features"],
            grid=TokenGrid(*metadata["grid"]),
            placeholder=metadata["placeholder"],
            pinned=tensors["pinned"],
            pinned_slots=tuple(metadata["pinned_slots"]),
            deepstack=tuple(tensors[f"deepstack.{level}"] for level in range(levels)),
            seconds_per_step=metadata["seconds_per_step"],
            tower=TowerAttention(tensors["tower.received"], tensors["tower.keys"])
            if "tower.received" in tensors
            else None,
        )

    def nbytes(self) -> int:
        """Bytes held by the tensors."""
        return tensor_bytes(*self.tensors().values())

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "VideoFeatures":
        """The same features on ``device`` as ``dtype``."""
        # Attention is ranked: as bfloat16 neighbours would tie.
        moved = {
            name: rows.to(device, torch.float32 if name.startswith("tower.") else dtype)
            for name, rows in self.tensors().items()
            if not self.stays or name == "pinned"
        }
        return VideoFeatures.from_parts({**self.tensors(), **moved}, self.metadata()).staying(self.stays)

    def staying(self, stays: bool) -> "VideoFeatures":
        """The same features, whose rows stay where they are or move with the rest."""
        return replace(self, stays=stays)


@dataclass(frozen=True)
class Encoded:
    """One prompt with its clips, ready to be compressed in many ways.

    Several clips of one frame size count as one video: their steps follow each other in ``grid``.
    """

    input_ids: Tensor  # (L,) int64
    position_ids: Tensor  # (P, L) int64, of the whole prompt
    grid: TokenGrid
    features: Tensor  # (N, D)
    video_columns: Tensor  # (N,) int64 ascending
    text_columns: Tensor  # (Lt,) int64 ascending: every other column, pinned ones included
    text_embeds: Tensor  # (Lt, D) raw embeddings; pinned columns hold their pinned row
    pinned: Tensor  # (M, D)
    pinned_columns: Tensor  # (M,) int64 ascending
    reach: int  # all position ids that the layers see lie below
    deepstack: tuple[Tensor, ...] = ()  # each (N, D)
    tower: TowerAttention | None = None  # of all clips; None where any of them lacks it

    @property
    def length(self) -> int:
        """Prompt columns L before compression."""
        return self.input_ids.shape[0]

    @property
    def text_length(self) -> int:
        """Prompt columns Lt that are never dropped."""
        return self.text_columns.shape[0]

    def policy_input(self) -> PolicyInput:
        """What the compression policy reads; shares the tensors. M-RoPE loses its text row: (3, L)."""
        rows = self.position_ids if self.position_ids.shape[0] == 1 else self.position_ids[1:]
        return PolicyInput(
            features=self.features,
            text=self.text_embeds,
            video_columns=self.video_columns,
            text_columns=self.text_columns,
            position_ids=rows,
            grid=self.grid,
        )


def joint_grid(grids: list[TokenGrid]) -> TokenGrid:
    """The grid of several clips one after the other; no clip gives an empty grid.

    Raises:
        UserError: The clips' frames hold different numbers of tokens.
    """
    grids = [grid for grid in grids if grid.tokens]  # rows given as they are have none
    if not grids:
        return TokenGrid(0, 0, 0)
    sizes = {(grid.rows, grid.columns) for grid in grids}
    if len(sizes) > 1:
        found = ", ".join(f"{rows}x{columns}" for rows, columns in sorted(sizes))
        raise UserError(f"clips of different frame sizes ({found} tokens) in one prompt: give them one resolution")
    return grids[0]._replace(frames=sum(grid.frames for grid in grids))
