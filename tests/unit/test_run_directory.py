"""The folder of a run: which folders may become one, and when it is complete."""

from pathlib import Path

import pytest

from cacovid.config import TrainConfig
from cacovid.errors import UserError
from cluster.commands.train import train
from cluster.run_directory import RunDirectory


def test_a_run_that_ended_before_its_first_step_may_be_started_again(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "run", TrainConfig()).release()
    RunDirectory.create(tmp_path / "run", TrainConfig(run={"steps": 3})).release()
    assert RunDirectory.resume(tmp_path / "run")[1].run.steps == 3


def test_a_folder_with_a_config_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("mine = true\n")
    with pytest.raises(UserError, match="is in use"):
        RunDirectory.create(tmp_path, TrainConfig())
    assert (tmp_path / "config.toml").read_text() == "mine = true\n"


def test_a_run_is_complete_with_the_checkpoint_of_its_last_step(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", TrainConfig())
    run.part(2).mkdir(parents=True)
    assert not run.is_complete(2)
    run.commit_checkpoint(2, keep=1)
    assert run.is_complete(2)
    assert not run.is_complete(3)
    with pytest.raises(UserError, match="is in use"):
        RunDirectory.create(tmp_path / "run", TrainConfig())


def test_resuming_a_complete_run_says_so_and_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDirectory.create(tmp_path / "run", TrainConfig(run={"steps": 2}))
    run.part(2).mkdir(parents=True)
    run.commit_checkpoint(2, keep=1)
    run.release()
    train(resume=run.folder)
    assert "all 2 steps are done; for more raise run.steps" in capsys.readouterr().out
