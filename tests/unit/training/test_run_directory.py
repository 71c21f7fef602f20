"""The folder of a run: which folders may become one, and when it is complete."""

from pathlib import Path

import pytest

from cacovid.config import TrainConfig
from cacovid.errors import UserError
from cluster.commands.train import train
from cluster.training.run import TrainingOutcome
from cluster.training.run_directory import RunDirectory, free_name


def test_a_run_that_ended_before_its_first_step_may_be_started_again(tmp_path: Path) -> None:
    first = RunDirectory.create(tmp_path / "run", TrainConfig())
    first.skipped.write_text("{}\n")
    first.release()
    again = RunDirectory.create(tmp_path / "run", TrainConfig(run={"steps": 3}))
    again.release()
    assert not again.skipped.exists()
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
    train(resume=str(run.folder))
    assert "all 2 steps are done; for more raise run.steps" in capsys.readouterr().out


@pytest.mark.parametrize("result", ["metrics.jsonl", "checkpoints/step-000020/file"])
def test_folder_with_results_is_in_use(result: str, tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", TrainConfig())
    run.release()
    (run.folder / result).parent.mkdir(parents=True, exist_ok=True)
    (run.folder / result).write_text('{"step": 0}\n')
    with pytest.raises(UserError, match="is in use"):
        RunDirectory.create(run.folder, TrainConfig())


def test_folder_that_another_process_holds_is_refused(tmp_path: Path) -> None:
    first = RunDirectory.create(tmp_path / "run", TrainConfig())
    for start in (lambda: RunDirectory.create(first.folder, TrainConfig()), lambda: RunDirectory.resume(first.folder)):
        with pytest.raises(UserError, match="being written by another run"):
            start()
    first.release()
    RunDirectory.resume(first.folder)[0].release()


def test_the_same_configuration_opens_the_run_again_and_its_places_may_change(tmp_path: Path) -> None:
    first = RunDirectory.open(tmp_path / "run", TrainConfig())
    first.metrics.write_text('{"step": 0}\n')
    first.release()
    moved = TrainConfig(actors={"count": 9})
    again = RunDirectory.open(tmp_path / "run", moved)
    assert again.rows() == [{"step": 0}]
    again.release()
    assert RunDirectory.resume(tmp_path / "run")[1] == moved


def test_another_configuration_does_not_open_the_run(tmp_path: Path) -> None:
    first = RunDirectory.open(tmp_path / "run", TrainConfig())
    first.metrics.write_text('{"step": 0}\n')
    first.release()
    with pytest.raises(UserError, match=r"run\.seed was 0 and is 1"):
        RunDirectory.open(tmp_path / "run", TrainConfig(run={"seed": 1}))
    assert RunDirectory(tmp_path / "run").rows() == [{"step": 0}]


def test_a_start_that_was_killed_before_its_config_was_written_is_no_run(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    RunDirectory.open(tmp_path, TrainConfig()).release()
    assert (tmp_path / "config.toml").exists()


def test_setting_aside_keeps_every_earlier_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert RunDirectory.set_aside(folder) is None
    names = []
    for seed in range(3):
        RunDirectory.create(folder, TrainConfig(run={"seed": seed})).release()
        names.append(RunDirectory.set_aside(folder))
    assert names == [tmp_path / "run.old", tmp_path / "run.old-2", tmp_path / "run.old-3"]
    assert [RunDirectory.resume(name)[1].run.seed for name in names if name] == [0, 1, 2]


def test_neither_a_run_being_written_nor_another_folder_is_set_aside(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", TrainConfig())
    with pytest.raises(UserError, match="being written by another run"):
        RunDirectory.set_aside(run.folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(UserError, match="holds no run to set aside"):
        RunDirectory.set_aside(tmp_path / "mine")
    assert (tmp_path / "mine" / "file").exists()
    assert run.config_file.exists()


def test_the_finished_runs_command_says_so_and_fresh_starts_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ["run.steps=2"]
    run = RunDirectory.create(tmp_path / "run", TrainConfig(run={"steps": 2}))
    run.part(2).mkdir(parents=True)
    run.commit_checkpoint(2, keep=1)
    run.release()
    train(out=str(run.folder), overrides=steps)
    assert "all 2 steps are done" in capsys.readouterr().out
    monkeypatch.setattr(
        "cluster.training.run.train", lambda config, run, *_, **__: TrainingOutcome(run.folder, 0, False, {})
    )
    train(out=str(run.folder), overrides=steps, fresh=True)
    assert f"the earlier {run.folder} is now {run.folder}.old" in capsys.readouterr().out
    assert RunDirectory(tmp_path / "run.old").is_complete(2)
    assert run.newest_checkpoint() is None


def test_search_for_a_free_name_ends() -> None:
    assert free_name("run", lambda name: name in {"run.old", "run.old-2"}) == "run.old-3"
    with pytest.raises(UserError, match=r"run\.old to run\.old-100 are all taken"):
        free_name("run", lambda name: True)


def test_unfinished_checkpoints_do_not_count_and_go(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.checkpoint(2).mkdir(parents=True)
    run.part(4).mkdir()
    assert run.newest_checkpoint() == run.checkpoint(2)
    run.clear_parts()
    assert [path.name for path in run.checkpoints.iterdir()] == ["step-000002"]


def test_oldest_checkpoints_go(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    for step in (1, 2, 3):
        run.part(step).mkdir(parents=True)
        run.commit_checkpoint(step, keep=2)
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == ["step-000002", "step-000003"]
    run.part(4).mkdir()
    run.commit_checkpoint(4, keep=1, best=2)
    assert [path.name for path in sorted(run.checkpoints.iterdir())] == ["step-000002", "step-000004"]


def test_row_cut_off_by_a_kill_is_left_out(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.metrics.write_text('{"step": 0}\n{"step": 1}\n{"ste')
    assert [row["step"] for row in run.rows()] == [0, 1]
    run.cut_metrics(1)
    assert run.metrics.read_text() == '{"step": 0}\n'
