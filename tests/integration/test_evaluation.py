"""Evaluation between training steps: it changes nothing, and the best checkpoint stays."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cacovid.errors import UserError
from cacovid.policy.base import CompressionPolicy
from cluster.training.best_checkpoint import PREFIX
from cluster.training.cpo import CPO
from cluster.training.price import price_of_policy
from cluster.training.run import train
from cluster.training.run_directory import RunDirectory
from cluster.training.run_status import RunStatus
from tests.integration.conftest import Trained, finished, run_training
from tests.integration.test_same_policy import largest_difference
from tests.support.answers_asked import sizes_asked


def evaluated(table: Path, every: int, clips: int) -> dict[str, object]:
    """Overrides of a run that is evaluated on the first clips of ``table``."""
    return {
        "evaluation.every": every,
        "evaluation.data": str(table),
        "evaluation.clips": clips,
        "evaluation.retentions": (0.1,),
        "evaluation.target_retention": 0.1,
    }


def test_evaluation_between_steps_changes_nothing_and_keeps_the_best(
    undisturbed: Trained, small_run: TrainConfig, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = sizes_asked(monkeypatch)
    own = evaluated(table, every=3, clips=3)  # and after the last step
    config = with_overrides(small_run, {**own, "run.checkpoint_every": 4, "run.keep_checkpoints": 1})
    run = RunDirectory.create(tmp_path / "run", config)
    trained = finished(train(config, run, lambda row: None), run)
    price = trained.outcome.price
    assert price is not None
    assert price == price_of_policy(run.policy) == RunStatus.read(run.folder).price
    assert price.scored == sum(row["combinations"] for row in run.rows()) == run.rows()[-1]["combinations_scored"]
    assert trained.losses == undisturbed.losses
    assert largest_difference(trained, undisturbed) == 0
    rows = run.rows()
    assert {f"{PREFIX}{name}" for name in ("accuracy_0.1", "full_accuracy", "questions", "seconds")} <= rows[2].keys()
    assert asked.count(max(asked)) == rows[2][f"{PREFIX}questions"], "all tokens are asked once, not every time"
    scores = {row["step"] + 1: row[f"{PREFIX}accuracy_0.1"] for row in rows if f"{PREFIX}accuracy_0.1" in row}
    assert [*scores] == [3, 4]
    best = json.loads(run.best.read_text())
    assert best["score"] == max(scores.values())
    assert best["step"] == next(step for step, score in scores.items() if score == best["score"])
    assert CompressionPolicy.from_pretrained(run.best_policy).metadata.trained_steps == best["step"]
    kept = {path.name for path in run.checkpoints.glob("step-*")}
    assert kept == {run.checkpoint(best["step"]).name, run.checkpoint(4).name}


@pytest.mark.slow
def test_evaluation_that_sigterm_meets_is_given_up_and_its_step_saved(
    undisturbed: Trained, small_run: TrainConfig, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only actor sleeps for a minute; the run ends at once, and goes on with the same policy."""
    plain = CPO.evaluate

    def sleep_then_evaluate(algorithm: CPO, *arguments: object) -> dict[str, object]:
        algorithm.env_runner_group.foreach_env_runner_async(lambda runner: time.sleep(60), tag="test")
        os.kill(os.getpid(), signal.SIGTERM)
        return plain(algorithm, *arguments)

    monkeypatch.setattr(CPO, "evaluate", sleep_then_evaluate)
    own = evaluated(table, every=2, clips=1)
    config = with_overrides(small_run, {**own, "actors.count": 1, "run.stop_grace_s": 0.5, "run.checkpoint_every": 4})
    trained = run_training(config, tmp_path / "run")
    assert trained.outcome.interrupted
    assert trained.outcome.finished_steps == len(trained.losses) == 2
    assert trained.run.is_complete(2)
    monkeypatch.undo()
    resumed, saved = RunDirectory.resume(tmp_path / "run")
    whole = finished(train(saved, resumed, lambda row: None), resumed)
    assert largest_difference(whole, undisturbed) <= 1e-6
    assert json.loads(resumed.best.read_text())["step"] == 4


def test_mistake_in_evaluation_data_shows_before_the_first_step(
    small_run: TrainConfig, cluster: None, tmp_path: Path
) -> None:
    config = with_overrides(small_run, {"evaluation.every": 2, "evaluation.data": str(tmp_path / "none.parquet")})
    run = RunDirectory.create(tmp_path / "run", config)
    with pytest.raises(UserError, match=r"none\.parquet"):
        train(config, run, lambda row: None)
    run.release()
    assert not run.rows()
