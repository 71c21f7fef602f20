"""The ``cacovid`` command as users type it: one line and exit code 2 for their mistakes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray

from cacovid.config import TrainConfig
from cacovid.config_files import to_toml, with_overrides
from cacovid.errors import UserError
from cluster.commands.main import main
from cluster.ray_cluster import connected
from cluster.training.run_directory import RunDirectory
from cluster.training.run_status import RunStatus
from tests.integration.conftest import Trained
from tests.support.waiting import wait_until


def cacovid(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cluster.commands.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        # What makes ``--help`` answer within a second, checked by what is imported, not by a clock.
        ("cluster.commands.main", {"torch", "ray", "transformers", "deepspeed"}),
        # It runs where neither is installed.
        ("benchmarks.real_shape.__main__", {"ray", "deepspeed"}),
    ],
)
def test_nothing_heavy_is_imported(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "--out DIR for a new run or --resume DIR"),
        (["train", "--out", "{tmp}/in-use"], "is in use"),
        (["train", "--resume", "{tmp}/none"], "no run to resume"),
        (["train", "--out", "{tmp}/new", "--set", "run.sed=1"], "run.sed: unknown field"),
        (["train", "--config", "{tmp}/none.toml", "--out", "{tmp}/new"], "cannot read the config"),
    ],
)
def test_mistakes_of_train_are_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "in-use").mkdir()
    (tmp_path / "in-use" / "file").touch()
    done = cacovid(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "data.train={tmp}/none.parquet", "--set", "actors.count=0"], "none.parquet"),
        (["--set", "model.path={tmp}/no-model", "--set", "actors.count=0"], "no-model"),
        (["--set", "actors.cpus=500"], "lower actors.count or actors.cpus"),
    ],
)
def test_mistakes_that_show_on_the_cluster_are_one_line_too(
    arguments: list[str],
    message: str,
    cluster: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process and on the tests' own cluster, which saves half a minute for each."""
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["cacovid", "train", "--out", str(tmp_path / "new"), *filled])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert message in said
    assert "Traceback" not in said
    status = RunStatus.read(tmp_path / "new")
    assert status.state == "failed"
    assert message in (status.error or "")


def test_address_without_a_cluster_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UserError, match=r"no Ray cluster at '127\.0\.0\.1:1'"), connected("127.0.0.1:1"):
        pass


def test_address_of_the_environment_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ray's own variable says; a dead address is told at once."""
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = cacovid("train", "--out", str(tmp_path / "new"))
    assert done.returncode == 2, done.stderr
    assert "no Ray cluster at '127.0.0.1:1'" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interrupted_run_leaves_a_checkpoint_and_resumes(number: int, table: Path, tmp_path: Path) -> None:
    """Ctrl-C, or a scheduler's notice, in the middle of a run of the real command, then ``--resume`` to the end."""
    out = tmp_path / "run"
    sets = [f"data.train={table}", "actors.count=0", "learners.count=0", "run.steps=400", "run.items_per_step=2"]
    small = ["sampling.group=8", "objective.replay_batch=2", "objective.replay_updates=1"]
    arguments = [part for each in [*sets, *small] for part in ("--set", each)]
    command = [sys.executable, "-m", "cluster.commands.main", "train", "--out", str(out), *arguments]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = out / "metrics.jsonl"

    def three_steps_done() -> bool:
        assert running.poll() is None, running.communicate()[1]
        return metrics.exists() and len(metrics.read_text().splitlines()) >= 3

    try:
        wait_until(three_steps_done, 200)
        running.send_signal(number)
        stdout, stderr = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130, stderr
    assert f"go on with --resume {out}" in stdout
    assert "Traceback" not in stderr
    assert list((out / "checkpoints").glob("step-*"))
    assert (out / "policy" / "policy.safetensors").exists()
    second = cacovid("train", "--out", str(out))
    assert second.returncode == 2
    assert "data.train was" in second.stderr
    assert "--fresh" in second.stderr


@pytest.mark.slow
def test_everything_killed_then_the_same_command_again_gives_the_same_losses(
    undisturbed: Trained, small_run: TrainConfig, tmp_path: Path
) -> None:
    """Driver, GCS, raylet and workers die at once, as with their machine; the run goes on in a new cluster."""
    config = tmp_path / "config.toml"
    config.write_text(to_toml(with_overrides(small_run, {"actors.count": 1, "run.checkpoint_every": 1})))
    out = tmp_path / "run"
    arguments = ["train", "--config", str(config), "--out", str(out)]
    running = subprocess.Popen(
        [sys.executable, "-m", "cluster.commands.main", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    run = RunDirectory(out)

    def two_steps_saved() -> bool:
        assert running.poll() is None, running.communicate()[1]
        return run.checkpoint(2).exists()

    try:
        wait_until(two_steps_saved, 200)
    finally:
        tree = [*psutil.Process(running.pid).children(recursive=True), psutil.Process(running.pid)]
        assert any("gcs_server" in process.name() for process in tree)
        for process in tree:
            process.kill()
        running.communicate()
    assert not run.is_complete(4)
    again = cacovid(*arguments, "--set", "actors.count=0")  # elsewhere, with fewer places
    assert again.returncode == 0, again.stderr
    assert "going on with the run" in again.stdout
    assert [row["loss"] for row in run.rows()] == undisturbed.losses
    third = cacovid(*arguments)
    assert third.returncode == 0, third.stderr
    assert "all 4 steps are done" in third.stdout


@pytest.mark.slow
def test_sigterm_to_all_processes_of_a_run_saves_it(table: Path, tmp_path: Path) -> None:
    """As `timeout`, `scancel` and systemd send it: the driver's own cluster must outlive it until the run is saved."""
    out = tmp_path / "run"
    sets = [f"data.train={table}", "run.steps=400", "run.items_per_step=2", "objective.replay_batch=2"]
    arguments = [part for each in sets for part in ("--set", each)]
    command = [sys.executable, "-m", "cluster.commands.main", "train", "--out", str(out), *arguments]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_until(lambda: (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size, 200)
        os.killpg(running.pid, signal.SIGTERM)
        stdout, stderr = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130, stderr
    assert f"go on with --resume {out}" in stdout
    assert list((out / "checkpoints").glob("step-*"))
