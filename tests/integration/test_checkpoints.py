"""Checkpoints: whole or not there, restored into live algorithms, and never another run's by mistake."""

import resource
import shutil
from pathlib import Path

import pytest
import ray
import torch

from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cacovid.data.table import read_questions, write_questions
from cacovid.errors import UserError
from cluster.training.cpo import CPO, CPOConfig
from cluster.training.run import train
from cluster.training.run_directory import RunDirectory
from tests.integration.conftest import Trained, finished


def build(small_run: TrainConfig, folder: Path, **overrides: object) -> CPO:
    changed = with_overrides(small_run, {name.replace("__", "."): value for name, value in overrides.items()})
    algorithm: CPO = CPOConfig.from_train_config(changed).training(run_dir=str(folder)).build_algo()
    return algorithm


def old_logits(algorithm: CPO) -> torch.Tensor:
    """What the policy said of the next step's items when they were rolled out."""
    results = algorithm.schedule.collect(algorithm.finished_steps)
    seen = [ray.get(each) if isinstance(each, ray.ObjectRef) else each for result in results for each in result.inputs]
    return torch.cat([each.old_token_logits for each in seen])


def test_live_restore_brings_the_other_runs_weights(small_run: TrainConfig, cluster: None, tmp_path: Path) -> None:
    """Same step and version, other weights: neither the actor's nor rollouts already in flight may be used."""
    one = build(small_run, tmp_path / "one", actors__count=1)
    other = build(small_run, tmp_path / "other", optimizer__lr=5e-4)
    try:
        for algorithm in (one, other):
            algorithm.train()
            algorithm.train()
        other.save_to_path(tmp_path / "checkpoint")
        one.restore_from_path(tmp_path / "checkpoint")
        assert torch.allclose(old_logits(one), old_logits(other), atol=1e-5)
    finally:
        one.stop()
        other.stop()


def test_full_disk_ends_the_run_with_its_checkpoints_whole(
    small_run: TrainConfig, undisturbed: Trained, tmp_path: Path
) -> None:
    """A limit on file sizes stands in for the full disk: the writes fail half-way as there."""
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_up(row: dict[str, float]) -> None:
        if row["step"] == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, usual[1]))

    run = RunDirectory.create(tmp_path / "run", small_run)
    try:
        with pytest.raises(UserError, match=r"cannot write into .*run .*--resume"):
            train(small_run, run, fill_up)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
        run.release()
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == ["step-000002", "step-000004.part"]
    resumed, config = RunDirectory.resume(run.folder)
    trained = finished(train(config, resumed, lambda row: None), resumed)
    assert trained.losses == undisturbed.losses
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == ["step-000002", "step-000004"]


@pytest.mark.parametrize(
    "missing", ["model-fingerprint", "learner_group/learners.json", "learner_group/part-00000.safetensors"]
)
def test_incomplete_checkpoint_is_refused(
    missing: str, small_run: TrainConfig, undisturbed: Trained, tmp_path: Path
) -> None:
    newest = undisturbed.run.newest_checkpoint()
    assert newest is not None
    checkpoint = Path(shutil.copytree(newest, tmp_path / "checkpoint"))
    (checkpoint / missing).rename(tmp_path / "moved")
    algorithm = build(small_run, tmp_path / "run")
    try:
        with pytest.raises(UserError, match=r"holds no (complete )?checkpoint"):
            algorithm.restore_from_path(checkpoint)
    finally:
        algorithm.stop()


def test_checkpoint_of_other_questions_is_refused(
    small_run: TrainConfig, undisturbed: Trained, table: Path, tmp_path: Path
) -> None:
    newest = undisturbed.run.newest_checkpoint()
    assert newest is not None
    write_questions(tmp_path / "few.parquet", read_questions(table)[:2])
    algorithm = build(small_run, tmp_path / "run", data__train=str(tmp_path / "few.parquet"))
    try:
        with pytest.raises(UserError, match=r"of the checkpoint is not in '.*few\.parquet'"):
            algorithm.restore_from_path(newest)
    finally:
        algorithm.stop()
