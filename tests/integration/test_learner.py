"""The DeepSpeed learner by itself: every placement and ZeRO stage takes the same optimiser steps."""

import time
from pathlib import Path

import pytest
import ray
import torch

from benchmarks.plain_learner import PlainLearner
from cacovid.config import PolicyConfig, TrainConfig
from cacovid.config_files import with_overrides
from cacovid.errors import UserError
from cacovid.policy.base import CompressionPolicy
from cacovid.policy.build import build_policy
from cacovid.records import HeldRecord, RolloutRecord
from cluster.training.cpo import CPOConfig
from learner.deepspeed_learner import PolicyFiles
from learner.engine import PolicyEngine
from learner.group import DeepSpeedLearnerGroup
from learner.training_data import RecordData
from tests.support.made_layers import tiny_layer
from tests.support.made_records import GRID, make_record

WIDTH = 16


@pytest.fixture(scope="module")
def policy_files(tmp_path_factory: pytest.TempPathFactory) -> PolicyFiles:
    folder = tmp_path_factory.mktemp("policy")
    build_policy(TrainConfig().policy, WIDTH, seed=0).save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def records() -> list[RolloutRecord]:
    """Five records of two grids: shards and micro-batches are ragged."""
    return [make_record(seed, grid=GRID._replace(frames=2 + seed % 2)) for seed in range(5)]


def start(policy_files: PolicyFiles, learners: int, zero_stage: int, **more: object) -> DeepSpeedLearnerGroup:
    overrides = {"learners.zero_stage": zero_stage, "learners.micro_batch_tokens": 60, **more}
    config = CPOConfig.from_train_config(with_overrides(TrainConfig(), overrides)).learners(num_learners=learners)
    return DeepSpeedLearnerGroup(
        config=config, module_spec=config.get_multi_rl_module_spec(), policy_files=policy_files
    )


def losses(group: DeepSpeedLearnerGroup, records: list[RolloutRecord], first: int = 0, count: int = 3) -> list[float]:
    """Updates on 5, 1 and 5 records: one learner of two has none in the middle."""
    batches = [records if update % 2 == 0 else records[:1] for update in range(first, first + count)]
    found = []
    for index, batch in enumerate(batches, start=first):
        data = RecordData(records=[HeldRecord.of(record) for record in batch], update_index=index)
        found.append(group.update(training_data=data)[0]["loss"])
    return found


@pytest.mark.parametrize("zero_stage", [0, 1, 2, 3])
def test_zero_stages_agree(zero_stage: int, policy_files: PolicyFiles, records: list[RolloutRecord]) -> None:
    reference = start(policy_files, 0, 0)
    expected, weights = losses(reference, records), reference.publish()
    reference.shutdown()
    group = start(policy_files, 0, zero_stage)
    assert losses(group, records) == pytest.approx(expected, rel=1e-6)
    published = group.publish()
    group.shutdown()
    assert max(float((published[name] - weights[name]).abs().max()) for name in weights) <= 1e-6


def test_a_learner_on_cpus_keeps_freed_memory(policy_files: PolicyFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[bool] = []
    monkeypatch.setattr("learner.deepspeed_learner.keep_freed_memory", lambda: kept.append(True))
    start(policy_files, 0, 0).shutdown()
    assert kept == [True]


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_bfloat16_weights_take_about_the_same_steps(
    zero_stage: int, policy_files: PolicyFiles, records: list[RolloutRecord]
) -> None:
    reference = start(policy_files, 0, zero_stage)
    expected = losses(reference, records)
    reference.shutdown()
    group = start(policy_files, 0, zero_stage, **{"learners.bf16": "on"})
    found = losses(group, records)
    group.shutdown()
    assert found == pytest.approx(expected, rel=0.03)
    assert found != expected


@pytest.mark.parametrize("zero_stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_two_learners_equal_the_local_one(
    zero_stage: int, policy_files: PolicyFiles, records: list[RolloutRecord], cluster: None, tmp_path: Path
) -> None:
    reference = start(policy_files, 0, 0)
    expected = losses(reference, records, count=5)
    reference.shutdown()
    group = start(policy_files, 2, zero_stage)
    assert losses(group, records) == pytest.approx(expected[:3], rel=1e-5)
    group.save_to_path(tmp_path / "checkpoint")
    assert losses(group, records, first=3, count=2) == pytest.approx(expected[3:], rel=1e-5)
    group.restore_from_path(tmp_path / "checkpoint")
    assert losses(group, records, first=3, count=2) == pytest.approx(expected[3:], rel=1e-5)
    group.shutdown()


def test_broken_connection_is_no_death_and_no_second_step(
    policy_files: PolicyFiles, records: list[RolloutRecord], cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learner has taken the step, but its answer is lost on the way: asked again, it does not take another one."""
    reference = start(policy_files, 0, 0)
    expected = losses(reference, records)
    reference.shutdown()
    group = start(policy_files, 1, 0)
    plain_get, broken = ray.get, []

    def get(calls: object, **options: object) -> object:
        answers = plain_get(calls, **options)
        if len(broken) < 2:
            broken.append(calls)
            raise ray.exceptions.ActorUnavailableError("connection reset", None)
        return answers

    monkeypatch.setattr("learner.group.ray.get", get)
    assert losses(group, records) == pytest.approx(expected, rel=1e-6)
    assert len(broken) == 2
    group.shutdown()


def test_learner_that_hangs_counts_as_dead(
    policy_files: PolicyFiles, records: list[RolloutRecord], cluster: None
) -> None:
    group = start(policy_files, 1, 0, **{"learners.timeout_s": 1})
    group.foreach_learner(lambda learner: setattr(learner, "update", lambda *shard: time.sleep(60)))
    with pytest.raises(ray.exceptions.RayActorError, match="1 of 1 learners have not answered in time"):
        losses(group, records)
    group.shutdown()


def test_checkpoint_of_an_earlier_release_is_told(policy_files: PolicyFiles, tmp_path: Path) -> None:
    (tmp_path / "learners.json").write_text('{"processes": 1, "zero_stage": 0}')
    group = start(policy_files, 0, 0)
    with pytest.raises(UserError, match=r"earlier release in DeepSpeed's own format.*--fresh"):
        group.restore_from_path(tmp_path)
    group.shutdown()


def test_full_gpu_names_the_remedy(
    policy_files: PolicyFiles, records: list[RolloutRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_up(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(PolicyEngine, "_loss", fill_up)
    group = start(policy_files, 0, 0)
    with pytest.raises(UserError, match=r"lower learners\.micro_batch_tokens \(60\)"):
        losses(group, records)
    group.shutdown()


def test_update_without_records_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one rollout record"):
        RecordData().validate()


def test_shards_cover_all_records_and_none_is_empty(records: list[RolloutRecord]) -> None:
    shards = [shard for shard, _ in RecordData(records=[HeldRecord.of(record) for record in records[:2]]).shard(3)]
    assert [shard.spare for shard in shards] == [False, False, True]
    assert all(shard.records and shard.global_count == 2 for shard in shards)


@pytest.mark.parametrize("scale", [0.0, 0.1])
def test_the_pretrained_layer_learns_at_its_share_of_the_rate(scale: float, tmp_path: Path) -> None:
    """AdamW's first step moves a weight by the rate, whatever its gradient."""
    policy = build_policy(PolicyConfig(kind="paper"), 32, tiny_layer(), seed=0)
    policy.save_pretrained(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    changes = {"policy.kind": "paper", "optimizer.backbone_scale": scale, "optimizer.weight_decay": 0.0}
    group = start(files, 0, 0, **changes)
    records = [make_record(seed, width=32) for seed in range(2)]
    rate = group.update(training_data=RecordData(records=[HeldRecord.of(record) for record in records]))[0]["lr"]
    moved = {name: (weight - policy.state_dict()[name]).abs().max() for name, weight in group.publish().items()}
    group.shutdown()
    pretrained = set(policy.layer.state_dict(prefix="layer."))
    assert max(moved[name] for name in pretrained).item() == pytest.approx(rate * scale, rel=0.02)
    assert max(moved[name] for name in moved.keys() - pretrained).item() == pytest.approx(rate, rel=0.02)


def test_the_plain_learner_of_the_benchmarks_takes_the_same_steps(policy_files: PolicyFiles, tmp_path: Path) -> None:
    for name, content in policy_files.items():
        (tmp_path / name).write_bytes(content)
    policy = CompressionPolicy.from_pretrained(tmp_path)
    group, config = start(policy_files, 0, 0), TrainConfig()
    plain = PlainLearner(policy, config.objective, config.optimizer, config.total_updates())
    records = [make_record(seed) for seed in range(4)]
    held = [HeldRecord.of(record) for record in records]
    for update in range(3):
        plain.update(records)
        group.update(training_data=RecordData(records=held, iterations=3, update_index=update))
    for name, weight in group.publish().items():
        torch.testing.assert_close(policy.state_dict()[name], weight, rtol=1e-4, atol=1e-5)
    group.shutdown()
