"""``cacovid status`` of made folders, and mistakes of ``submit`` and ``jobs`` that need no cluster."""

from pathlib import Path

import pytest

from cacovid.config import TrainConfig
from cacovid.errors import UserError
from cluster.commands.status import _folder_of
from cluster.training.run_directory import RunDirectory
from cluster.training.run_status import StatusFile
from cluster.training.stores.address import StoreAddress
from cluster.training.stores.opening import default_folder
from tests.unit.commands.test_measuring_commands import cacovid, refused
from tests.unit.training.test_run_status import actors, row

FORTY = TrainConfig(run={"steps": 40}, evaluation={"every": 1})


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """In its second attempt, with three of forty steps done."""
    made = RunDirectory.create(tmp_path / "run", FORTY)
    StatusFile(made, FORTY, 1, None).error(RuntimeError("no room"))
    status = StatusFile(made, FORTY, 2, None)
    for step in range(3):
        status.add(row(step), actors(wanted=4, ready=3, dead=1))
    status.saved(made.checkpoint(2))
    status.error(RuntimeError("a learner died [1]"))
    return made


def test_a_run_under_way(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cacovid(monkeypatch, "status", run.folder) == 0
    said = {line.split(maxsplit=1)[0]: " ".join(line.split()[1:]) for line in capsys.readouterr().out.splitlines()}
    assert said["run"] == str(run.folder)
    assert said["state"] == "training, attempt 2"
    assert said["step"] == "3 of 40"
    assert said["pace"] == "1800.0 steps/h, 50 combinations/s, 0:01:14 left"
    assert said["reward"] == "0.250, of the policy's own top k 0.010"
    assert said["actors"] == "3 of 4 ready, 1 lost"
    assert said["checkpoint"] == "step-000002"
    assert said["last"] == "error a learner died [1]"
    assert said["written"].startswith("now, by process ")


def test_a_run_whose_process_is_gone_without_a_word(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run.release()
    assert cacovid(monkeypatch, "status", run.folder) == 0
    said = capsys.readouterr().out
    assert "killed while training, attempt 2" in said
    assert "no longer, by process" in said
    assert "ready" not in said


def test_a_run_in_a_store_stands_where_this_machine_works_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store = "s3://secret:key@bucket/runs/mine"
    with pytest.raises(UserError, match=r"no working folder for s3://\*\*\*:\*\*\*@bucket/runs/mine: give the one"):
        _folder_of(store)
    address = StoreAddress.parse(store)
    assert address is not None
    StatusFile(RunDirectory.create(default_folder(address), TrainConfig()), FORTY, 1, None)
    assert cacovid(monkeypatch, "status", store) == 0
    assert "none yet" in capsys.readouterr().out


def test_a_run_that_has_not_done_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    StatusFile(RunDirectory.create(tmp_path / "run", TrainConfig()), FORTY, 1, None)
    assert cacovid(monkeypatch, "status", tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "none yet" in said
    assert "pace" not in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "{tmp}/none"], "is no run that was started"),
        (["status", "{tmp}"], "is no run that was started"),
        (["submit", "--", "tarin"], "`cacovid tarin` is no command to submit"),
        (["submit", "--working-dir", "{tmp}/none", "train", "--out", "/x"], "no folder"),
        (["submit", "--working-dir", "{tmp}", "--", "train", "--out", "x"], "would lie in the job's copy"),
        (["submit", "--working-dir", "{tmp}", "--env", "A", "--", "train", "--out", "/x"], "sets nothing"),
        (["submit", "--working-dir", "{tmp}", "--install", "--", "train", "--out", "/x"], "has no constraints.txt"),
        (
            ["submit", "--working-dir", "{tmp}", "--address", "http://127.0.0.1:1", "--", "train", "--out", "/x"],
            "no Ray",
        ),
        (["jobs", "list", "--address", "http://127.0.0.1:1"], "no Ray cluster at 'http://127.0.0.1:1'"),
        (["jobs", "list", "--address", "127.0.0.1"], "it names no port"),
        (["jobs", "list", "--address", "s3://bucket:1"], "it is no address"),
        (["status", "http://127.0.0.1:1"], "no Ray cluster at 'http://127.0.0.1:1'"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert message in refused(monkeypatch, capsys, *(each.format(tmp=tmp_path) for each in arguments))
