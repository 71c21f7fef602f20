"""The combinations of several records as flat arrays, with their advantages.

Everything that an objective sums over an item's memory is a sum over these rows, so records with any
number of inner iterations, combinations and retained tokens are reduced at once.

Shape legend: B records of one grid, R combinations (rows) of all of them, K retained tokens of all rows,
N video tokens, T frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cacovid.objective.advantage import standardise
from cacovid.records import Mode, RolloutRecord, ScoredCombinations, TokenGrid


@dataclass(frozen=True)
class Memory:
    """What the first inner iterations of B records taught, row by row."""

    records: int  # B
    grid: TokenGrid
    record: Tensor  # (R,) int64 record of each row
    by_frames: Tensor  # (R,) bool, True for frame samples
    reward: Tensor  # (R,) float64
    advantage: Tensor  # (R,) float64
    size: Tensor  # (R,) int64 retained tokens of each row
    kept: Tensor  # (K,) int64 retained tokens, record * N + token
    frames: Tensor  # (R, T) bool drawn frames, False for other rows

    def per_record(self, values: Tensor) -> Tensor:
        """(B,) sums of the rows' values."""
        return torch.bincount(self.record, weights=values, minlength=self.records)

    def per_token(self, values: Tensor) -> Tensor:
        """(B, N) sums of the values of the rows that retained each token."""
        weights = values.repeat_interleave(self.size)
        sums = torch.bincount(self.kept, weights=weights, minlength=self.records * self.grid.tokens)
        return sums.view(self.records, self.grid.tokens)

    def per_frame(self, values: Tensor) -> Tensor:
        """(B, T) sums of the values of the rows that drew each frame."""
        sums = torch.zeros(self.records, self.grid.frames, dtype=torch.float64)
        return sums.index_add_(0, self.record, values.double()[:, None] * self.frames)

    def informative(self) -> Tensor:
        """(B,) bool, False for records whose advantages are all 0."""
        return self.per_record(self.advantage.abs()) > 0


def flatten(records: Sequence[RolloutRecord], iterations: int) -> Memory:
    """The first ``iterations`` inner iterations of ``records`` (at least one, all of one grid) in flat form."""
    grid = records[0].input.grid
    assert all(record.input.grid == grid for record in records), "one batch holds one grid"
    parts = [(row, scored) for row, record in enumerate(records) for scored in record.iterations[:iterations]]
    memory = [scored for _, scored in parts]
    sizes = torch.tensor([scored.reward.shape[0] for scored in memory])
    owner = torch.tensor([row for row, _ in parts])
    by_frames = torch.cat([scored.combinations.modes for scored in memory]) == Mode.FRAME
    kept = torch.tensor([scored.combinations.kept.shape[1] for scored in memory])
    reward = torch.cat([scored.reward for scored in memory])
    offset = (owner * grid.tokens).repeat_interleave(sizes * kept)
    return Memory(
        records=len(records),
        grid=grid,
        record=owner.repeat_interleave(sizes),
        by_frames=by_frames,
        reward=reward.double(),
        advantage=standardise(reward, 2 * _rate_groups(parts).repeat_interleave(sizes) + by_frames),
        size=kept.repeat_interleave(sizes),
        kept=torch.cat([scored.combinations.kept.flatten() for scored in memory]).long() + offset,
        frames=torch.cat([scored.combinations.frames for scored in memory]),
    )


def _rate_groups(parts: Sequence[tuple[int, ScoredCombinations]]) -> Tensor:
    """(number of parts,) int64: equal for inner iterations of one record at one sampling rate."""
    numbers: dict[tuple[int, float], int] = {}
    return torch.tensor([numbers.setdefault((row, scored.combinations.rate), len(numbers)) for row, scored in parts])
