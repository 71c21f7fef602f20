"""The trackers of a run: what is missing, and one that cannot be reached."""

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

import cluster.training.run
import cluster.training.tracking.base as base
import cluster.training.tracking.mlflow as mlflow
from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cacovid.errors import UserError
from cluster.training.run_directory import RunDirectory
from cluster.training.tracking.base import Row, Trackers, TrackingFailed

CONFIG = with_overrides(TrainConfig(), {"run.tracking": ["mlflow"], "run.steps": 4})


@pytest.mark.parametrize("missing", ["mlflow", "sqlalchemy"])
def test_missing_package_is_told_before_ray_is_started(
    missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*arguments: object) -> NoReturn:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(base, "find_spec", lambda name: None if name == missing else name)
    monkeypatch.setattr(cluster.training.run, "connected", started)
    message = rf"run.tracking has 'mlflow', but the package {missing} is not installed: pip install 'cacovid\[mlflow\]'"
    with pytest.raises(UserError, match=message):
        cluster.training.run.train(CONFIG, RunDirectory(tmp_path), lambda row: None)
    assert not list(tmp_path.iterdir())


class Unsteady:
    """Cannot be reached now and then."""

    def __init__(self) -> None:
        self.down = False
        self.steps: list[float] = []
        self.kept: list[str] = []
        self.ended: list[str] = []

    def add(self, rows: Sequence[Row]) -> None:
        if self.down:
            raise TrackingFailed("no route to host")
        self.steps += [row["step"] for row in rows]

    def keep(self, files: Sequence[Path]) -> None:
        self.kept += [path.name for path in files]

    def close(self, ended: str) -> None:
        self.ended.append(ended)


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch) -> Unsteady:
    unsteady = Unsteady()
    monkeypatch.setattr(mlflow, "open_tracker", lambda run, config: unsteady)
    return unsteady


def test_rows_that_a_tracker_did_not_take_are_sent_again_with_a_warning(
    tracker: Unsteady, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDirectory(tmp_path)
    run.curve.write_bytes(b"")
    with Trackers(run, CONFIG) as trackers:
        trackers.begin([{"step": 0}])
        tracker.down = True
        trackers.add({"step": 1})
        trackers.add({"step": 2})
        assert not tracker.steps
        tracker.down = False
        trackers.add({"step": 3})
    assert tracker.steps == [0, 1, 2, 3]
    assert "mlflow was not told of 3 steps, they are sent again with the next: no route to host" in caplog.text
    assert (tracker.kept, tracker.ended) == (["curve.png"], ["finished"])


@pytest.mark.parametrize(("error", "ended"), [(None, "stopped"), (KeyboardInterrupt, "failed")])
def test_attempt_that_does_not_reach_the_last_step_keeps_no_files(
    tracker: Unsteady, tmp_path: Path, error: type[BaseException] | None, ended: str
) -> None:
    try:
        with Trackers(RunDirectory(tmp_path), CONFIG) as trackers:
            trackers.begin([])
            trackers.add({"step": 0})
            if error is not None:
                raise error
    except KeyboardInterrupt:
        pass
    assert (tracker.steps, tracker.kept, tracker.ended) == ([0], [], [ended])


def test_tracker_that_cannot_be_opened_is_a_plain_error(tmp_path: Path) -> None:
    config = with_overrides(CONFIG, {"run.mlflow_uri": str(tmp_path / "a-folder")})
    with pytest.raises(UserError, match=r"^mlflow cannot be told of the run \(.*sqlite"):
        Trackers(RunDirectory(tmp_path), config)


def test_figures_of_a_question_type_with_any_letters_are_taken(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    try:
        tracker = mlflow.open_tracker(run, CONFIG)
        tracker.add([{"step": 0.0, "loss": 1.0, "evaluation//who & why (2)?_accuracy_0.05": 0.5}])
        found = tracker._client.get_run(tracker._id).data.metrics
    finally:
        run.release()
    assert found["evaluation/_who _ why _2___accuracy_0.05"] == 0.5
