"""Deaths and hangs where they hurt: the run goes on with the same policy, or ends with a plain reason."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import ray

from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cacovid.errors import UserError
from cacovid.policy.build import build_policy
from cacovid.records import HeldRecord
from cluster.ray_cluster import check_resources
from cluster.training.cpo import CPO, CPOConfig
from cluster.training.initial_policy import initial_policy_files, read_policy_files
from cluster.training.rollout_schedule import RolloutSchedule
from cluster.training.run import train
from cluster.training.run_directory import RunDirectory
from cluster.training.run_status import RunStatus
from learner.deepspeed_learner import DeepSpeedLearner
from learner.group import DeepSpeedLearnerGroup
from learner.training_data import RecordData
from tests.integration.conftest import Trained, finished, run_training
from tests.integration.test_same_policy import largest_difference
from tests.support.killing import actor_pids, kill, kill_after_step, learner_pids
from tests.support.made_records import make_record
from tests.support.processes import is_running
from tests.support.waiting import wait_until


@pytest.mark.slow
def test_every_rollout_actor_killed_at_once_loses_nothing(
    undisturbed: Trained, small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_after_step(monkeypatch, 2, actor_pids)
    trained = run_training(with_overrides(small_run, {"actors.count": 2}), tmp_path / "run")
    assert trained.run.rows()[-1]["lost_actors"] == 2
    assert largest_difference(trained, undisturbed) <= 1e-6


@pytest.mark.slow
def test_learner_killed_while_the_last_checkpoint_is_written(
    undisturbed: Trained, small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps 3 and 4 are done again from the checkpoint of step 2."""
    plain_save = CPO.save_to_path
    killed: list[int] = []

    def kill_then_save(algorithm: CPO, path: Path, **kwargs: object) -> str:
        if algorithm.finished_steps == 4 and not killed:
            killed.extend(learner_pids(algorithm))
            kill(killed)
        return plain_save(algorithm, path, **kwargs)

    monkeypatch.setattr(CPO, "save_to_path", kill_then_save)
    trained = run_training(with_overrides(small_run, {"learners.count": 1}), tmp_path / "run")
    assert killed
    assert [row["step"] for row in trained.run.rows()] == [0, 1, 2, 3]
    status = RunStatus.read(trained.run.folder)
    assert (status.state, status.step, status.checkpoint) == ("finished", 4, "step-000004")
    assert "died" in (status.error or "")
    assert largest_difference(trained, undisturbed) <= 1e-6


@pytest.mark.slow
def test_learner_killed_before_the_first_checkpoint(
    undisturbed: Trained, small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run starts over, in place."""
    killed = kill_after_step(monkeypatch, 1, learner_pids)
    trained = run_training(with_overrides(small_run, {"learners.count": 1}), tmp_path / "run")
    assert killed
    assert trained.losses == pytest.approx(undisturbed.losses, rel=1e-6)
    assert largest_difference(trained, undisturbed) <= 1e-6


def test_death_of_a_learner_is_told_from_its_peers_broken_call(cluster: None, tmp_path: Path) -> None:
    """The peer's error comes in first; only a death makes the run restart its learners."""
    build_policy(TrainConfig().policy, 16, seed=0).save_pretrained(tmp_path)
    config = CPOConfig().learners(num_learners=2)
    group = DeepSpeedLearnerGroup(
        config=config, module_spec=config.get_multi_rl_module_spec(), policy_files=read_policy_files(tmp_path)
    )

    def break_down(learner: DeepSpeedLearner) -> None:
        def update(*arguments: object) -> None:
            if learner._learner_index == 0:
                raise RuntimeError("Connection closed by peer")
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)

        learner.policy_engine.update = update

    group.foreach_learner(break_down)
    try:
        with pytest.raises(ray.exceptions.RayActorError):
            group.update(training_data=RecordData(records=[HeldRecord.of(make_record(seed)) for seed in range(2)]))
    finally:
        group.shutdown()


def test_stop_ends_busy_actors_at_once(cluster: None, table: Path, small_run: TrainConfig, tmp_path: Path) -> None:
    """RLlib's own stop would wait for the ten minutes that the actor sleeps."""
    config = CPOConfig.from_train_config(with_overrides(small_run, {"actors.count": 1}))
    algorithm: CPO = config.training(run_dir=str(tmp_path)).build_algo()
    (pid,) = actor_pids(algorithm)
    algorithm.env_runner_group.foreach_env_runner_async(lambda runner: time.sleep(600), tag="test")
    algorithm.stop()
    wait_until(lambda: not is_running(pid))


def test_failed_build_leaves_no_actor(
    cluster: None, small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The build fails after the rollout actors have started; the traceback keeps the algorithm alive."""
    pids: list[int] = []

    def note_then_fail(schedule: RolloutSchedule, version: int, weights: object) -> None:
        wait_until(schedule.pool.handles)
        pids.extend(ray.get([handle.apply.remote(lambda runner: os.getpid()) for handle in schedule.pool.handles()]))
        raise UserError("no weights")

    monkeypatch.setattr(RolloutSchedule, "publish", note_then_fail)
    config = with_overrides(small_run, {"actors.count": 1})
    with pytest.raises(UserError, match="no weights") as failure:
        CPOConfig.from_train_config(config).training(run_dir=str(tmp_path)).build_algo()
    assert len(pids) == 1
    wait_until(lambda: not is_running(pids[0]))
    assert failure.traceback


def test_learners_that_cannot_start_are_told_before_any_actor_is_started(
    cluster: None, small_run: TrainConfig, tmp_path: Path
) -> None:
    config = with_overrides(small_run, {"actors.count": 1, "learners.gpus": 1})
    with pytest.raises(UserError, match=r"learners\.gpus=1, but torch sees no GPU"):
        CPOConfig.from_train_config(config).training(run_dir=str(tmp_path)).build_algo()
    late = with_overrides(small_run, {"actors.count": 0, "learners.count": 1, "run.start_timeout_s": 2})
    with pytest.raises(UserError, match=r"learners could not start \(1 of 1 learners have not answered in time\)"):
        CPOConfig.from_train_config(late).training(run_dir=str(tmp_path)).build_algo()


def test_rollout_actors_cannot_starve_the_learners(cluster: None, small_run: TrainConfig, tmp_path: Path) -> None:
    """The two actors would fill the cluster's 8 CPUs; the learner has its 3 before them, and one actor waits."""
    places = {"actors.count": 2, "actors.cpus": 4, "learners.count": 1, "learners.cpus": 3}
    config = with_overrides(small_run, {**places, "run.start_timeout_s": 60})
    algorithm: CPO = CPOConfig.from_train_config(config).training(run_dir=str(tmp_path)).build_algo()
    try:
        assert algorithm.train()["cpo"]["questions"] == 4
        assert len(algorithm.pool.handles()) == 1
    finally:
        algorithm.stop()


def test_sigterm_in_a_step_that_does_not_end_saves_the_last_finished_one(
    undisturbed: Trained, small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only actor sleeps for a minute after the second step; the run ends seconds after the signal."""
    plain_step = CPO.training_step

    def step_then_sleep(algorithm: CPO) -> None:
        plain_step(algorithm)
        if algorithm.finished_steps == 2:
            algorithm.env_runner_group.foreach_env_runner_async(lambda runner: time.sleep(60), tag="test")
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()

    monkeypatch.setattr(CPO, "training_step", step_then_sleep)
    config = with_overrides(small_run, {"actors.count": 1, "run.stop_grace_s": 0.5, "run.checkpoint_every": 4})
    trained = run_training(config, tmp_path / "run")
    finished_steps = trained.outcome.finished_steps
    assert trained.outcome.interrupted
    assert finished_steps in (2, 3)  # the third one's rollouts may have been there already
    assert trained.run.newest_checkpoint() == trained.run.checkpoint(finished_steps)
    monkeypatch.undo()
    resumed, saved = RunDirectory.resume(tmp_path / "run")
    whole = finished(train(saved, resumed, lambda row: None), resumed)
    assert whole.losses == undisturbed.losses
    assert largest_difference(whole, undisturbed) <= 1e-6


def test_cluster_without_room_is_told_and_not_waited_for_for_ever(
    cluster: None, small_run: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A cluster that was joined may grow: first a warning, in the end an error."""
    large = {"actors.count": 1, "actors.cpus": 500, "learners.count": 1, "learners.cpus": 400}
    config = with_overrides(small_run, {**large, "run.start_timeout_s": 1})
    check_resources(config, elastic=True)
    assert "need 900 CPUs, the cluster has 8: waiting up to 1 s" in caplog.text
    with pytest.raises(UserError, match="room for a rollout actor of 500 CPUs"):
        initial_policy_files(config)
    build_policy(config.policy, 16, seed=0).save_pretrained(tmp_path)
    algorithm_config = CPOConfig.from_train_config(config)
    with pytest.raises(UserError, match="no room for 1 learners of 400 CPUs"):
        DeepSpeedLearnerGroup(
            config=algorithm_config,
            module_spec=algorithm_config.get_multi_rl_module_spec(),
            policy_files=read_policy_files(tmp_path),
        )
