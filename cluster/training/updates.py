"""The learner's updates of one training step: which records each takes, fresh or replayed.

Rollouts are held as object-store values of the driver, inputs where the actors made them. An input that is not at hand
(after a restore, or lost with its node) is encoded again, by whichever actors are free, once an update draws it.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import ray
from ray.experimental import get_object_locations

from actors.task import TaskResult
from cacovid.config import TrainConfig
from cacovid.errors import UserError
from cacovid.objective.replay import ReplayBuffer
from cacovid.objective.replay_snapshot import ReplaySnapshot
from cacovid.records import HeldRecord, Rollout
from cacovid.seeding import generator
from learner.group import DeepSpeedLearnerGroup, InputsLost
from learner.training_data import RecordData

EncodeAgain = Callable[[Sequence[str], int | None], Mapping[str, object]]  # item ids, policy version -> inputs


class Updates:
    """Feeds a learner group and holds the replay buffer.

    Args:
        encode_again: Inputs of items, by id; with the logits of that version of the policy if one is given.
    """

    def __init__(self, config: TrainConfig, encode_again: EncodeAgain) -> None:
        self.config = config
        self._encode_again = encode_again
        objective = config.objective
        self.replay: ReplayBuffer[HeldRecord] = ReplayBuffer(objective.replay_items, objective.replay_bytes)

    def learn(self, group: DeepSpeedLearnerGroup, step: int, results: Sequence[TaskResult]) -> list[dict[str, float]]:
        """All updates of training step ``step`` on its ``results``; metrics of each.

        Raises:
            UserError: The loss is no number any more, or a replayed item can no longer be read.
        """
        per_step = self.config.updates_per_step()
        batches = self._batches(step, results)
        self._complete([held for batch, _ in batches for held in batch])
        losses = []
        for update, (batch, iterations) in enumerate(batches):
            data = RecordData(records=batch, iterations=iterations, update_index=step * per_step + update)
            losses.append(self._update(group, data))
            self._check_finite(losses[-1], f"training step {step}")
        return losses

    def refit(self, group: DeepSpeedLearnerGroup, updates: int, report: Callable[[int, float], None]) -> None:
        """``updates`` optimiser steps of fresh learners on the replay buffer alone; ``report`` gets each one's loss.

        Raises:
            UserError: As :meth:`learn`.
        """
        config, whole_run = self.config, self.config.total_updates()
        for update in range(updates):
            records = self._draw("refit", update)
            self._complete(records)
            # Learners lay the schedule over a whole run: it is passed through in larger or smaller strides.
            place = update * whole_run // updates
            data = RecordData(records=records, iterations=config.sampling.inner_iterations, update_index=place)
            losses = self._update(group, data)
            self._check_finite(losses, f"update {update}")
            report(update + 1, losses["loss"])

    def _check_finite(self, losses: Mapping[str, float], where: str) -> None:
        if not all(math.isfinite(losses[name]) for name in ("loss", "grad_norm")):
            raise UserError(
                f"loss {losses['loss']}, gradient norm {losses['grad_norm']} at {where}: "
                f"start anew with a lower optimizer.lr than {self.config.optimizer.lr:g}"
            )

    def snapshot(self) -> ReplaySnapshot:
        """The replay buffer without its inputs."""
        return ReplaySnapshot(tuple((self._value(held.rollout), held.nbytes) for held in self.replay.values()))

    def refill(self, snapshot: ReplaySnapshot) -> None:
        """Put what ``snapshot`` holds in place of what the replay buffer does; inputs not at hand come when drawn."""
        known = {held.item_id: held.seen for held in self.replay.values()}
        self.replay.clear()
        for rollout, nbytes in snapshot.entries:
            self._keep(rollout, self._hold(rollout, known.get(rollout.item_id), nbytes))

    def let_go(self, nodes: Collection[str]) -> None:
        """Give up inputs that lie on ``nodes`` alone, which leave: they are encoded again when an update draws them."""
        held = [each for each in self.replay.values() if isinstance(each.seen, ray.ObjectRef)] if nodes else []
        places = get_object_locations([each.seen for each in held]) if held else {}
        for each in held:
            there = places[each.seen]["node_ids"]  # none: the driver itself holds it
            if there and all(node in nodes for node in there):
                each.seen = None

    def _update(self, group: DeepSpeedLearnerGroup, data: RecordData) -> dict[str, float]:
        while True:
            try:
                return group.update(training_data=data)[0]
            except InputsLost as lost:
                for held in lost.records:
                    held.seen = None
                self._complete(lost.records)

    def _complete(self, records: Iterable[HeldRecord]) -> None:
        """Encode again what is not at hand, all at once: the more, the more actors have work."""
        missing = [held for held in dict.fromkeys(records) if held.seen is None]
        needs_logits = self.config.objective.by_drawing_policy()
        for version in sorted({held.policy_version if needs_logits else -1 for held in missing}):
            same = [held for held in missing if not needs_logits or held.policy_version == version]
            ids = list(dict.fromkeys(held.item_id for held in same))
            inputs = self._encode_again(ids, version if needs_logits else None)
            for held in same:
                held.seen = self._by_reference(inputs[held.item_id])

    def _batches(self, step: int, results: Sequence[TaskResult]) -> list[tuple[list[HeldRecord], int]]:
        """Each update's records, and the inner iterations of their memory that enter its loss."""
        updates = range(self.config.updates_per_step())
        fresh = [
            (rollout, self._hold(rollout, seen, rollout.nbytes() + size))
            for result in results
            for rollout, seen, size in zip(result.rollouts, result.inputs, result.input_bytes, strict=True)
        ]
        if self.config.objective.by_drawing_policy():
            return [([held for _, held in fresh], update + 1) for update in updates]
        memory = self.config.sampling.inner_iterations
        if not self.config.objective.replays():
            return [([held for _, held in fresh], memory) for _ in updates]
        for rollout, held in fresh:
            self._keep(rollout, held)
        return [(self._draw("replay", step, update), memory) for update in updates]

    def _draw(self, *key: int | str) -> list[HeldRecord]:
        draw = generator(self.config.run.seed, *key)
        return self.replay.draw(self.config.objective.replay_batch, draw)

    def _keep(self, rollout: Rollout, held: HeldRecord) -> None:
        self.replay.add(f"{rollout.step}/{rollout.item_id}", held.nbytes, held)

    def _hold(self, rollout: Rollout, seen: object | None, nbytes: int) -> HeldRecord:
        held = None if seen is None else self._by_reference(seen)
        return HeldRecord(rollout.item_id, rollout.policy_version, self._by_reference(rollout), held, nbytes)

    def _by_reference(self, part: object) -> object:
        """As a reference where learners are remote; put by the driver, so that no actor's death loses it."""
        return ray.put(part) if self.config.learners.count and not isinstance(part, ray.ObjectRef) else part

    @staticmethod
    def _value(rollout: object) -> Rollout:
        value = ray.get(rollout) if isinstance(rollout, ray.ObjectRef) else rollout
        assert isinstance(value, Rollout)
        return value
