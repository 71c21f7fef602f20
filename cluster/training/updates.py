"""The learner's updates of one training step: which records each takes, fresh or replayed."""

import math
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import ray

from cacovid.config import TrainConfig
from cacovid.errors import UserError
from cacovid.objective.replay import ReplayBuffer
from cacovid.objective.replay_snapshot import ReplaySnapshot
from cacovid.records import RolloutRecord
from cacovid.seeding import generator
from learner.group import DeepSpeedLearnerGroup
from learner.training_data import RecordData

Handle: TypeAlias = ray.ObjectRef | RolloutRecord


class Updates:
    """Feeds a learner group and holds the replay buffer."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        objective = config.objective
        self.replay: ReplayBuffer[Handle] = ReplayBuffer(objective.replay_items, objective.replay_bytes)

    def learn(
        self, group: DeepSpeedLearnerGroup, step: int, records: Sequence[RolloutRecord]
    ) -> list[dict[str, float]]:
        """All updates of training step ``step``; metrics of each.

        Raises:
            UserError: The loss is no number any more.
        """
        per_step = self.config.updates_per_step()
        losses = []
        for update, (batch, iterations) in enumerate(self._batches(step, records)):
            data = RecordData(records=list(batch), iterations=iterations, update_index=step * per_step + update)
            losses.append(group.update(training_data=data)[0])
            if not all(math.isfinite(losses[-1][name]) for name in ("loss", "grad_norm")):
                raise UserError(
                    f"loss {losses[-1]['loss']}, gradient norm {losses[-1]['grad_norm']} at training step {step}: "
                    f"start anew with a lower optimizer.lr than {self.config.optimizer.lr:g}"
                )
        return losses

    def snapshot(self) -> ReplaySnapshot:
        """The replay buffer's records without their inputs."""
        held = self.replay.values()
        return ReplaySnapshot.of(ray.get(each) if isinstance(each, ray.ObjectRef) else each for each in held)

    def refill(self, records: Iterable[RolloutRecord]) -> None:
        """Put ``records``, oldest first, in place of what the replay buffer holds."""
        self.replay.clear()
        for record in records:
            self._keep(record, self._hold(record))

    def _batches(self, step: int, records: Sequence[RolloutRecord]) -> list[tuple[list[Handle], int]]:
        """Each update's records, and the inner iterations of their memory that enter its loss."""
        updates = range(self.config.updates_per_step())
        fresh = [self._hold(record) for record in records]
        if self.config.objective.kind == "clipped":
            return [(fresh, update + 1) for update in updates]
        memory = self.config.sampling.inner_iterations
        if not self.config.objective.replay_bytes:
            return [(fresh, memory) for _ in updates]
        for record, handle in zip(records, fresh, strict=True):
            self._keep(record, handle)
        return [(self._draw(step, update), memory) for update in updates]

    def _draw(self, step: int, update: int) -> list[Handle]:
        draw = generator(self.config.run.seed, "replay", step, update)
        return self.replay.draw(self.config.objective.replay_batch, draw)

    def _keep(self, record: RolloutRecord, handle: Handle) -> None:
        self.replay.add(f"{record.step}/{record.item_id}", record.nbytes(), handle)

    def _hold(self, record: RolloutRecord) -> Handle:
        """By reference where learners are remote; put by the driver, so that no actor's death loses it."""
        return ray.put(record) if self.config.learners.count else record
