"""``cacovid train --out URI``: killed, told to end, and gone on with where nothing of it is left but the store."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from cacovid.config import TrainConfig
from cacovid.config_files import to_toml, with_overrides
from cluster.training.run_directory import RunDirectory
from tests.integration.conftest import Trained
from tests.integration.test_command_line import cacovid
from tests.support.s3_server import BUCKET, SECRET, S3Server
from tests.support.waiting import wait_until


def complete(s3: S3Server, folder: str) -> set[int]:
    """Steps of the checkpoints that count by their markers."""
    names = (name for name in s3.files(f"{folder}/checkpoints") if name.endswith("COMPLETE"))
    return {int(name[len("step-") :].partition("/")[0]) for name in names}


def started(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cluster.commands.main", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def kill_tree(process: subprocess.Popen[str]) -> None:
    tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for each in tree:
        each.kill()
    process.communicate()


@pytest.mark.cluster
@pytest.mark.shows("Checkpoints in stores: killed, told to end, gone on with elsewhere")
def test_driver_killed_and_its_machine_gone_then_the_same_command_gives_the_same_losses(
    s3: S3Server, undisturbed: Trained, small_run: TrainConfig, tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text(to_toml(with_overrides(small_run, {"actors.count": 1, "run.checkpoint_every": 1})))
    folder, work = f"{tmp_path.name}/run", tmp_path / "work"
    arguments = ["--config", str(config), "--out", s3.uri(folder), "--work", str(work)]
    running = started(*arguments)

    def two_steps_saved() -> bool:
        assert running.poll() is None, running.communicate()[1]
        return max(complete(s3, folder), default=0) >= 2

    try:
        wait_until(two_steps_saved, 200)
    finally:
        kill_tree(running)
    assert 4 not in complete(s3, folder)
    shutil.rmtree(work)
    again = cacovid("train", *arguments, "--set", "actors.count=0")
    assert again.returncode == 0, again.stderr
    assert f"going on with the run in s3://***:***@{BUCKET}/{folder}" in again.stdout
    assert complete(s3, folder) == {3, 4}
    rows = s3.filesystem().open_input_stream(f"{BUCKET}/{folder}/metrics.jsonl").read().decode().splitlines()
    assert [json.loads(row)["loss"] for row in rows] == undisturbed.losses
    shutil.rmtree(work)
    third = cacovid("train", "--resume", s3.uri(folder), "--work", str(work))
    assert third.returncode == 0, third.stderr
    assert "all 4 steps are done" in third.stdout
    assert not work.exists()
    assert all(SECRET not in text for done in (again, third) for text in (done.stdout, done.stderr))


@pytest.mark.cluster
@pytest.mark.shows("Checkpoints in stores: killed, told to end, gone on with elsewhere")
def test_sigterm_saves_and_uploads_the_last_finished_step(s3: S3Server, table: Path, tmp_path: Path) -> None:
    folder, work = f"{tmp_path.name}/run", tmp_path / "work"
    sets = [f"data.train={table}", "actors.count=0", "learners.count=0", "run.steps=400", "run.items_per_step=2"]
    small = ["sampling.group=8", "objective.replay_batch=2", "objective.replay_updates=1", "run.checkpoint_every=400"]
    arguments = [part for each in [*sets, *small] for part in ("--set", each)]
    running = started("--out", s3.uri(folder), "--work", str(work), *arguments)
    try:
        wait_until(lambda: len(RunDirectory(work).rows()) >= 3 or running.poll() is not None, 200)
        running.send_signal(signal.SIGTERM)
        stdout, stderr = running.communicate(timeout=100)
    finally:
        running.kill()
    assert running.returncode == 130, stderr
    assert "waiting until the checkpoint of step" in stderr
    assert f"go on with --resume s3://***:***@{BUCKET}/{folder}" in stdout
    assert complete(s3, folder) == {len(RunDirectory(work).rows())}
    assert SECRET not in stdout + stderr


def test_a_store_that_says_no_is_one_line_before_ray_starts(s3: S3Server, tmp_path: Path) -> None:
    done = cacovid("train", "--out", s3.uri("run", bucket="nothing"), "--work", str(tmp_path / "work"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "error: there is no bucket 'nothing' for s3://***:***@nothing/run?" in done.stderr
    assert not done.stdout
