"""The same seed gives the same policy, whatever the number of processes, their deaths or restarts."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ray.util.placement_group import placement_group_table

from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cacovid.errors import UserError
from cluster.training.run import train
from cluster.training.run_directory import RunDirectory
from tests.integration.conftest import Trained, finished, run_training
from tests.support.killing import actor_pids, kill_after_step, learner_pids
from tests.support.tiny_models import save_tiny_model
from tests.support.waiting import wait_until


def largest_difference(one: Trained, other: Trained) -> float:
    assert one.weights.keys() == other.weights.keys()
    return max(float((one.weights[name] - other.weights[name]).abs().max()) for name in one.weights)


def test_training_changes_the_policy_and_records_its_staleness(undisturbed: Trained, small_run: TrainConfig) -> None:
    rows = undisturbed.run.rows()
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["staleness"] for row in rows] == [0, 1, 1, 1]
    assert any(row["informative"] > 0 for row in rows)
    assert len({row["loss"] for row in rows}) > 1
    log = (undisturbed.run.logs / "attempt-1.log").read_text()
    assert [f"attempt=1 step={step}/4 reward=" in log for step in (1, 2, 3, 4)] == [True] * 4
    assert log.endswith("attempt=1 ended after step 4 of 4\n")


@pytest.mark.parametrize(("actors", "learners"), [pytest.param(1, 0, marks=pytest.mark.slow), (2, 1)])
def test_number_of_processes_does_not_matter(
    actors: int, learners: int, undisturbed: Trained, small_run: TrainConfig, tmp_path: Path
) -> None:
    config = with_overrides(small_run, {"actors.count": actors, "learners.count": learners})
    assert largest_difference(run_training(config, tmp_path / "run"), undisturbed) <= 1e-6


def test_parts_of_items_do_not_matter(undisturbed: Trained, small_run: TrainConfig, tmp_path: Path) -> None:
    """Three parts of every question's eight combinations, and tasks of two questions."""
    config = with_overrides(small_run, {"actors.parts_per_item": 3, "actors.items_per_task": 2})
    assert config.busy_actors() == 2 * 2 * 3
    assert largest_difference(run_training(config, tmp_path / "run"), undisturbed) <= 1e-6


def test_another_seed_gives_another_policy(undisturbed: Trained, small_run: TrainConfig, tmp_path: Path) -> None:
    other = run_training(with_overrides(small_run, {"run.seed": 1}), tmp_path / "run")
    assert largest_difference(other, undisturbed) > 1e-3


def test_killed_rollout_actor_loses_nothing(
    undisturbed: Trained, small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``kill -9`` of one of two actors while its tasks of the next step are in flight."""
    killed = kill_after_step(monkeypatch, 2, lambda algorithm: actor_pids(algorithm)[:1])
    trained = run_training(with_overrides(small_run, {"actors.count": 2}), tmp_path / "run")
    assert killed
    assert trained.run.rows()[-1]["lost_actors"] == 1
    assert largest_difference(trained, undisturbed) <= 1e-6


def test_killed_learner_is_restarted_from_the_newest_checkpoint(
    undisturbed: Trained, small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``kill -9`` of the learner after step 3: step 3 is done again from the checkpoint of step 2, in its place."""
    killed = kill_after_step(monkeypatch, 3, learner_pids)
    places = len(placement_group_table())
    trained = run_training(with_overrides(small_run, {"learners.count": 1}), tmp_path / "run")
    assert killed
    assert [row["step"] for row in trained.run.rows()] == [0, 1, 2, 3]
    assert trained.losses == pytest.approx(undisturbed.losses, rel=1e-6)
    assert largest_difference(trained, undisturbed) <= 1e-6
    assert len(placement_group_table()) == places + 1


def test_resume_after_kill_of_the_driver_repeats_the_uninterrupted_losses(
    undisturbed: Trained, small_run: TrainConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "tests.support.slow_driver", str(folder), small_run.model_dump_json()]
    driver = subprocess.Popen(command, start_new_session=True, cwd=Path(__file__).parents[2])
    run = RunDirectory(folder)

    def three_steps_done() -> bool:
        assert driver.poll() is None, "the driver ended by itself"
        return run.newest_checkpoint() is not None and len(run.rows()) >= 3

    try:
        wait_until(three_steps_done, 200)
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    assert len(run.rows()) < 4
    resumed, config = RunDirectory.resume(folder)
    trained = finished(train(config, resumed, lambda row: None), resumed)
    assert trained.losses == undisturbed.losses
    assert largest_difference(trained, undisturbed) <= 1e-6


def test_checkpoint_of_another_model_is_refused(undisturbed: Trained, small_run: TrainConfig, tmp_path: Path) -> None:
    other = with_overrides(small_run, {"model.path": str(save_tiny_model("llava_onevision", tmp_path / "model"))})
    run, _ = RunDirectory.resume(undisturbed.run.folder)
    try:
        with pytest.raises(UserError, match="written with another model"):
            train(other, run, lambda row: None)
    finally:
        run.release()
