"""Which inputs an update needs again: after a restore those that it draws, and those that went with their node."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

import pytest
import ray

from actors.task import TaskResult
from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cacovid.records import HeldRecord, RolloutInput
from cluster.training.updates import Updates
from learner.group import DeepSpeedLearnerGroup, InputsLost
from learner.training_data import RecordData
from tests.support.made_records import make_record


@dataclass
class Group:
    """A learner group that finds inputs of the items ``lost`` missing once."""

    lost: list[str] = field(default_factory=list)
    updates: list[list[HeldRecord]] = field(default_factory=list)

    def update(self, *, training_data: RecordData) -> list[dict[str, float]]:
        missing = [held for held in training_data.records if held.item_id in self.lost]
        if missing:
            self.lost.clear()
            raise InputsLost(missing)
        assert all(held.seen is not None for held in training_data.records)
        self.updates.append(list(training_data.records))
        return [{"loss": 0.0, "grad_norm": 0.0}]


@dataclass
class Encoder:
    """Encodes items again and notes which, with which version of the policy."""

    asked: list[tuple[tuple[str, ...], int | None]] = field(default_factory=list)

    def __call__(self, ids: Sequence[str], version: int | None) -> dict[str, RolloutInput]:
        self.asked.append((tuple(ids), version))
        return {id: make_record(int(id.split("-")[1])).parts()[1] for id in ids}


def made(objective: str, **overrides: object) -> tuple[Updates, Encoder]:
    settings = {"learners.count": 0, "objective.kind": objective, "objective.replay_updates": 2, **overrides}
    encoder = Encoder()
    return Updates(with_overrides(TrainConfig(), settings), encoder), encoder


def results(*seeds: int) -> list[TaskResult]:
    parts = [make_record(seed).parts() for seed in seeds]
    return [
        TaskResult(
            rollouts=tuple(rollout for rollout, _ in parts),
            inputs=tuple(seen for _, seen in parts),
            input_bytes=tuple(seen.nbytes() for _, seen in parts),
        )
    ]


def learn(updates: Updates, group: Group, seeds: Sequence[int]) -> None:
    updates.learn(cast(DeepSpeedLearnerGroup, group), 0, results(*seeds))


def test_inputs_that_are_lost_are_encoded_again_and_the_update_is_done_once() -> None:
    updates, encoder = made("credit")
    group = Group(lost=["item-1", "item-3"])
    learn(updates, group, range(5))
    assert sorted(encoder.asked[0][0]) == ["item-1", "item-3"]
    assert encoder.asked[0][1] is None  # credits need no old logits
    assert len(encoder.asked) == 1
    assert len(group.updates) == 2


def test_the_clipped_objective_needs_the_logits_of_the_policy_that_drew() -> None:
    updates, encoder = made("clipped")
    learn(updates, Group(lost=["item-2"]), range(3))
    assert encoder.asked == [(("item-2",), 0)]


def test_the_ratio_to_the_current_policy_needs_no_old_logits_and_replays() -> None:
    updates, encoder = made("clipped", **{"objective.ratio": "current", "objective.replay_batch": 3})
    group = Group(lost=["item-2"])
    learn(updates, group, range(3))
    assert encoder.asked == [(("item-2",), None)]
    learn(updates, group, range(3, 6))
    assert len(updates.replay) == 6
    assert [len(batch) for batch in group.updates] == [3, 3, 3, 3]
    assert {held.item_id for batch in group.updates[2:] for held in batch} & {"item-0", "item-1", "item-2"}


def test_the_ratio_to_the_drawing_policy_takes_no_replay() -> None:
    updates, _ = made("clipped", **{"sampling.inner_iterations": 3})
    group = Group()
    learn(updates, group, range(2))
    assert len(updates.replay) == 0
    assert [len(batch) for batch in group.updates] == [2, 2, 2]


def test_restored_rollouts_are_encoded_when_an_update_draws_them_and_not_before() -> None:
    before, _ = made("credit")
    learn(before, Group(), range(8))
    snapshot = before.snapshot()
    assert snapshot.item_ids() == tuple(f"item-{seed}" for seed in range(8))
    before.refill(snapshot)  # of the same run: the inputs are still there
    assert all(held.seen is not None for held in before.replay.values())
    after, encoder = made("credit", **{"objective.replay_batch": 2, "objective.replay_updates": 1})
    after.refill(snapshot)
    assert encoder.asked == []
    assert after.replay.nbytes == before.replay.nbytes
    group = Group()
    learn(after, group, [9])
    drawn = {held.item_id for held in group.updates[0]} - {"item-9"}
    assert {id for ids, _ in encoder.asked for id in ids} == drawn
    assert len(drawn) <= 2


def test_inputs_that_lie_on_leaving_nodes_alone_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of items 1 and 2; one that has a copy elsewhere, and one that the driver itself holds, stay."""
    updates, encoder = made("credit")
    learn(updates, Group(), range(5))
    places = {1: ["going"], 2: ["going", "gone"], 3: ["going", "staying"], 4: []}
    references = {number: ray.ObjectRef.from_random() for number in places}
    for held in updates.replay.values():
        held.seen = references.get(int(held.item_id.split("-")[1]), held.seen)
    locations = {references[number]: {"node_ids": nodes} for number, nodes in places.items()}
    monkeypatch.setattr("cluster.training.updates.get_object_locations", lambda _: locations)
    updates.let_go(frozenset())
    assert all(held.seen is not None for held in updates.replay.values())
    updates.let_go(frozenset({"going", "gone"}))
    assert {held.item_id for held in updates.replay.values() if held.seen is None} == {"item-1", "item-2"}
    assert encoder.asked == []
