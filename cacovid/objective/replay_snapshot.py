"""The replay buffer across a restart: rollouts are saved, embeddings are encoded again.

An item's embeddings are megabytes where its rollouts are kilobytes. The frozen model encodes an item to
the same numbers each time (and mostly from the embedding cache), so a checkpoint leaves them out.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from cacovid.records import PolicyInput, RolloutRecord, TokenGrid

_NO_INPUT = PolicyInput(
    features=torch.empty(0),
    text=torch.empty(0),
    video_columns=torch.empty(0, dtype=torch.long),
    text_columns=torch.empty(0, dtype=torch.long),
    position_ids=torch.empty(0, dtype=torch.long),
    grid=TokenGrid(0, 0, 0),
)


@dataclass(frozen=True)
class ReplaySnapshot:
    """Records without their inputs, oldest first."""

    records: tuple[RolloutRecord, ...]

    @classmethod
    def of(cls, records: Iterable[RolloutRecord]) -> "ReplaySnapshot":
        """Strip the inputs off, one record at a time: all of them together can be gigabytes."""
        return cls(tuple(replace(record, input=_NO_INPUT) for record in records))

    def item_ids(self) -> tuple[str, ...]:
        """Items whose inputs are needed, each once, in the order of their first record."""
        return tuple(dict.fromkeys(record.item_id for record in self.records))

    def refill(self, inputs: Mapping[str, PolicyInput]) -> list[RolloutRecord]:
        """The records with their inputs put back.

        Raises:
            KeyError: An input is missing.
        """
        return [replace(record, input=inputs[record.item_id]) for record in self.records]
