"""Ragged rollout records as RLlib training data: sharded by record, resolved at the learner."""

from dataclasses import dataclass, field
from typing import Any, Self

from ray.rllib.core.learner.training_data import TrainingData

from cacovid.records import HeldRecord


@dataclass
class RecordData(TrainingData):  # type: ignore[misc]
    """One optimiser step's records, whose parts are values or object-store references.

    Every learner gets the global count, so that the loss is the mean over all learners' records. A
    learner without a record of its own gets a spare one of weight 0: ragged batches never deadlock.
    """

    records: list[HeldRecord] = field(default_factory=list)
    iterations: int = 1  # inner iterations of each record's memory that enter the loss
    update_index: int = 0  # optimiser step of the run, for the schedule
    global_count: int = 0  # records over all learners; 0 until sharded
    spare: bool = False  # True: `records` only keeps this learner in step, with weight 0

    def validate(self) -> None:
        """Raises ValueError without records."""
        if not self.records:
            raise ValueError("an update needs at least one rollout record")

    def shard(
        self,
        num_shards: int,
        len_lookback_buffer: int | None = None,
        **kwargs: Any,  # noqa: ANN401 - RLlib's signature
    ) -> list[tuple[Self, dict[str, Any]]]:
        """Deal the records out round robin."""
        return [(self._part(self.records[rank::num_shards]), {}) for rank in range(num_shards)]

    def _part(self, records: list[HeldRecord]) -> Self:
        return type(self)(
            records=records or self.records[:1],
            iterations=self.iterations,
            update_index=self.update_index,
            global_count=len(self.records),
            spare=not records,
        )

    def solve_refs(self) -> None:
        """Nothing: the learner resolves references through its :class:`learner.record_cache.RecordCache`."""
