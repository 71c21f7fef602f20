"""The log of one attempt, and which code it names."""

import logging
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

from cacovid.config import TrainConfig
from cacovid.errors import UserError
from cluster.training import build
from cluster.training.attempt_log import AttemptLog
from cluster.training.run_directory import RunDirectory


def test_warnings_of_ours_are_in_it_and_elsewhere_as_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as in the command, where nobody sets logging up
    ours = logging.getLogger("actors.pool")

    def attempt() -> NoReturn:
        with AttemptLog(RunDirectory(tmp_path), TrainConfig()):
            ours.warning("an actor fell over")
            ours.info("a detail")
            raise UserError("too few actors")

    with pytest.raises(UserError):
        attempt()
    ours.warning("nobody writes this down")
    (path,) = (tmp_path / "logs").iterdir()
    _, warning, detail, end = path.read_text().splitlines()
    assert warning.endswith("WARNING actors.pool: an actor fell over")
    assert detail.endswith("INFO actors.pool: a detail")
    assert end.endswith(f"ERROR run: run={tmp_path.name} attempt=1 ended by UserError: too few actors")
    assert capsys.readouterr().err == "an actor fell over\nnobody writes this down\n"


def test_attempts_are_counted_on(tmp_path: Path) -> None:
    for number in range(1, 12):
        with AttemptLog(RunDirectory(tmp_path), TrainConfig()) as log:
            assert log.number == number


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_commit_is_that_of_the_checkout_itself(tmp_path: Path) -> None:
    assert build._of_checkout(tmp_path) is None
    git(tmp_path, "init")
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "file").write_text("1")
    assert build._of_checkout(tmp_path) is None  # no commit yet
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--message", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert build._of_checkout(tmp_path) == commit
    assert build._of_checkout(tmp_path / "inside") is None
    (tmp_path / "inside" / "file").write_text("2")
    assert build._of_checkout(tmp_path) == f"{commit} + changes"


def test_commit_of_a_wheel_is_what_pip_has_noted() -> None:
    assert build._of_wheel('{"url": "https://host/r", "vcs_info": {"vcs": "git", "commit_id": "1a2b"}}') == "1a2b"
    assert build._of_wheel('{"url": "file:///r", "dir_info": {"editable": true}}') is None
    assert build._of_wheel(None) is None
