"""A checkpoint moves to another number of learners and another ZeRO stage: the same losses go on."""

import itertools
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from cacovid.config import PolicyConfig, TrainConfig
from cacovid.config_files import with_overrides
from cacovid.errors import UserError
from cacovid.policy.build import build_policy
from cacovid.records import HeldRecord, RolloutRecord
from cluster.training.cpo import CPOConfig
from cluster.training.initial_policy import read_policy_files
from learner.deepspeed_learner import PolicyFiles
from learner.group import DeepSpeedLearnerGroup
from learner.training_data import RecordData
from tests.support.made_layers import tiny_layer
from tests.support.made_records import GRID, make_record

Shape = tuple[int, int]  # learners, ZeRO stage
SHAPES: list[Shape] = [(learners, stage) for learners in (0, 1, 2, 4) for stage in range(4)]
POLICIES = ("late", "paper")
WIDTH = 32
UPDATES = 3  # before the checkpoint, and as many after it

pytestmark = pytest.mark.usefixtures("cluster")


@pytest.fixture(scope="module", params=POLICIES)
def policy_files(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PolicyFiles:
    folder = tmp_path_factory.mktemp("policy")
    layer = tiny_layer("qwen2") if request.param == "paper" else None
    build_policy(PolicyConfig(kind=request.param), WIDTH, layer, seed=0).save_pretrained(folder)
    return read_policy_files(folder)


@pytest.fixture(scope="module")
def records() -> list[RolloutRecord]:
    return [make_record(seed, grid=GRID._replace(frames=2 + seed % 2), width=WIDTH) for seed in range(5)]


def start(policy_files: PolicyFiles, shape: Shape, **more: object) -> DeepSpeedLearnerGroup:
    learners, stage = shape
    overrides = {"learners.zero_stage": stage, "learners.micro_batch_tokens": 60, "learners.cpus": 0.25, **more}
    config = CPOConfig.from_train_config(with_overrides(TrainConfig(), overrides)).learners(num_learners=learners)
    return DeepSpeedLearnerGroup(
        config=config, module_spec=config.get_multi_rl_module_spec(), policy_files=policy_files
    )


def losses(group: DeepSpeedLearnerGroup, records: list[RolloutRecord], first: int) -> list[float]:
    found = []
    for index in range(first, first + UPDATES):
        batch = records if index % 2 == 0 else records[:2]
        data = RecordData(records=[HeldRecord.of(record) for record in batch], update_index=index)
        found.append(group.update(training_data=data)[0]["loss"])
    return found


def written(
    policy_files: PolicyFiles, shape: Shape, records: list[RolloutRecord], folder: Path, **more: object
) -> list[float]:
    """Losses after the checkpoint that a group of ``shape`` writes into ``folder``."""
    group = start(policy_files, shape, **more)
    try:
        losses(group, records, 0)
        group.save_to_path(folder)
        return losses(group, records, UPDATES)
    finally:
        group.shutdown()


def continued(group: DeepSpeedLearnerGroup, records: list[RolloutRecord], folder: Path) -> list[float]:
    group.restore_from_path(folder)
    return losses(group, records, UPDATES)


@pytest.mark.cluster
@pytest.mark.shows("Checkpoints from one number of learners and ZeRO stage to another")
@pytest.mark.parametrize(("before", "after"), [((0, 0), (0, 3)), ((0, 3), (0, 2)), ((2, 3), (0, 0)), ((0, 0), (2, 3))])
def test_losses_go_on_in_another_shape(
    before: Shape, after: Shape, policy_files: PolicyFiles, records: list[RolloutRecord], tmp_path: Path
) -> None:
    expected = written(policy_files, before, records, tmp_path)
    group = start(policy_files, after)
    try:
        assert continued(group, records, tmp_path) == pytest.approx(expected, rel=1e-6)
        losses(group, records, 0)  # and into a group that has gone elsewhere meanwhile
        assert continued(group, records, tmp_path) == pytest.approx(expected, rel=1e-6)
    finally:
        group.shutdown()


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.shows("Checkpoints from every number of learners and ZeRO stage to every other")
def test_losses_go_on_in_every_other_shape(
    policy_files: PolicyFiles, records: list[RolloutRecord], tmp_path: Path
) -> None:
    """Every pair: each shape writes once, then each reads what all of them wrote."""
    folders = {shape: tmp_path / f"{shape[0]}-{shape[1]}" for shape in SHAPES}
    expected = {shape: written(policy_files, shape, records, folder) for shape, folder in folders.items()}
    for after in SHAPES:
        group = start(policy_files, after)
        try:
            for before, folder in folders.items():
                found = continued(group, records, folder)
                assert found == pytest.approx(expected[0, 0], rel=1e-6), f"{before} -> {after}"
        finally:
            group.shutdown()


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations([0, 1, 3], 2)))
def test_bfloat16_keeps_its_float32_masters(
    before: int, after: int, policy_files: PolicyFiles, records: list[RolloutRecord], tmp_path: Path
) -> None:
    """Masters of which only their bfloat16 copies were left would give other parts when saved again."""
    written(policy_files, (0, before), records, tmp_path / "one", **{"learners.bf16": "on"})
    group = start(policy_files, (0, after), **{"learners.bf16": "on"})
    group.restore_from_path(tmp_path / "one")
    group.save_to_path(tmp_path / "other")
    group.shutdown()
    one, other = (load_file(tmp_path / name / "part-00000.safetensors") for name in ("one", "other"))
    assert one.keys() == other.keys()
    assert all(bool((one[name] == other[name]).all()) for name in one)
    assert any(bool((one[name] != one[name].bfloat16().float()).any()) for name in one if name.startswith("weight/"))


def test_parts_that_are_not_the_whole_policy_are_refused(
    policy_files: PolicyFiles, records: list[RolloutRecord], tmp_path: Path
) -> None:
    written(policy_files, (0, 0), records, tmp_path)
    part = tmp_path / "part-00000.safetensors"
    tensors = load_file(part)
    lost = next(name for name in tensors if name.startswith("weight/"))
    group = start(policy_files, (0, 0))
    try:
        save_file({name: value for name, value in tensors.items() if name != lost}, part)
        with pytest.raises(UserError, match=r"the checkpoint holds 0 of the \d+ elements"):
            group.restore_from_path(tmp_path)
        save_file({**tensors, "weight/0/unknown": tensors[lost].clone()}, part)
        with pytest.raises(UserError, match="of another policy: it has unknown"):
            group.restore_from_path(tmp_path)
    finally:
        group.shutdown()


def test_zero_3_learners_write_their_own_partitions_alone(
    policy_files: PolicyFiles, records: list[RolloutRecord], tmp_path: Path
) -> None:
    """No part holds more than a half, give or take the odd element of each parameter."""
    written(policy_files, (2, 3), records, tmp_path)
    parts = [load_file(tmp_path / f"part-0000{rank}.safetensors") for rank in range(2)]
    sizes = [sum(values.numel() for values in part.values()) for part in parts]
    assert abs(sizes[0] - sizes[1]) <= 3 * len(parts[0])
    assert all(not (one.keys() - {"step"}) & other.keys() for one, other in itertools.permutations(parts, 2))
