"""status.json: what it says of a run, attempt after attempt."""

import json
from pathlib import Path

import pytest

from actors.pool_state import PoolState
from cacovid.config import TrainConfig
from cacovid.errors import UserError
from cluster.training.run_directory import RunDirectory
from cluster.training.run_status import RECENT, RunStatus, State, StatusFile

FIFTY = TrainConfig(run={"steps": 50})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", FIFTY)


def row(step: int, seconds: float = 2.0) -> dict[str, float]:
    return {"step": step, "seconds": seconds, "combinations": 100.0, "reward": 0.25, "top_k_reward": step / 100}


def actors(wanted: int = 0, ready: int = 0, dead: int = 0) -> PoolState:
    return PoolState(waiting=0, given_out=0, requeued=0, wanted=wanted, ready=ready, deaths={"killed": dead})


def test_states_of_an_attempt(run: RunDirectory) -> None:
    def state() -> State:
        return RunStatus.read(run.folder).state

    status = StatusFile(run, FIFTY, 1, None)
    assert state() is State.STARTING
    status.actors(actors(wanted=2))
    assert state() is State.WAITING
    status.add(row(0), actors(wanted=2, ready=1, dead=3))
    assert state() is State.TRAINING
    found = RunStatus.read(run.folder)
    assert (found.step, found.actors_wanted, found.actors_ready, found.actors_dead) == (1, 2, 1, 3)
    status.actors(actors())
    assert state() is State.TRAINING  # the driver scores
    status.end()
    assert state() is State.INTERRUPTED
    status.end(RuntimeError("no room\nand more"))
    assert (state(), RunStatus.read(run.folder).error) == (State.FAILED, "no room")
    status.add(row(49), actors())
    status.end()
    assert state() is State.FINISHED


def test_pace_and_rewards_are_means_over_the_newest_steps(run: RunDirectory) -> None:
    status = StatusFile(run, FIFTY, 1, None)
    for step in range(RECENT + 5):
        status.add(row(step, seconds=100.0 if step < 5 else 2.0), actors())
    found = RunStatus.read(run.folder)
    assert found.figures is not None
    assert found.figures.steps_per_hour == pytest.approx(1800)
    assert found.figures.combinations_per_second == pytest.approx(50)
    assert found.figures.reward == pytest.approx(0.25)
    assert found.figures.top_k_reward == pytest.approx(sum(range(5, 25)) / 20 / 100)
    assert found.seconds_left == pytest.approx(2.0 * 25)


def test_the_next_attempt_starts_from_the_files(run: RunDirectory) -> None:
    StatusFile(run, FIFTY, 1, None).error(RuntimeError("a learner died"))
    run.metrics.write_text("".join(json.dumps(row(step)) + "\n" for step in range(3)))
    run.checkpoint(2).mkdir(parents=True)
    second = StatusFile(run, FIFTY, 2, "10.0.0.1:6379")
    found = RunStatus.read(run.folder)
    assert (found.attempt, found.error) == (2, None)
    assert (found.step, found.checkpoint, found.cluster) == (3, "step-000002", "10.0.0.1:6379")
    run.cut_metrics(2)
    second.look()
    assert RunStatus.read(run.folder).step == 2
    second.saved(run.checkpoint(3))
    assert RunStatus.read(run.folder).checkpoint == "step-000003"


def test_the_copy_says_the_same(run: RunDirectory, tmp_path: Path) -> None:
    status = StatusFile(run, FIFTY, 1, None)
    status.copy_to(tmp_path / "copy.json")
    status.copy_to(None)  # a driver that is on no machine of the cluster
    assert (tmp_path / "copy.json").read_text() == (run.folder / "status.json").read_text()
    status.end()
    assert (tmp_path / "copy.json").read_text() == (run.folder / "status.json").read_text()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no run that was started: status.json: No such file"),
        ("{", "is no status of a run: content: Invalid JSON"),
        ('{"folder": "x"}', "is no status of a run: state: Field required"),
        ("\0\xff", "is no status of a run"),
    ],
)
def test_a_folder_without_a_status_is_told_in_one_line(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    with pytest.raises(UserError, match=message) as refused:
        RunStatus.read(tmp_path)
    assert "\n" not in str(refused.value)


def test_whether_somebody_writes_is_told_by_the_lock(run: RunDirectory, tmp_path: Path) -> None:
    assert run.is_held()
    assert RunDirectory(run.folder).is_held()
    run.release()
    assert not RunDirectory(run.folder).is_held()
    assert not RunDirectory(tmp_path).is_held()
    RunDirectory.resume(run.folder)[0].release()  # looking took nothing away
