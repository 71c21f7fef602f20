"""`slurm/train.sbatch` as shipped, on SLURM: submitted, killed, run again by itself, finished."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cacovid.config import TrainConfig
from cacovid.config_files import to_toml, with_overrides
from tests.integration.conftest import SMALL_RUN
from tests.support.manifests import DEPLOY
from tests.support.slurm import Slurm, slurm
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.deploy,
    pytest.mark.timeout(900),
    pytest.mark.shows("SLURM: submitted, killed and requeued, told to end, cancelled"),
]

STEPS = 60
RUN_S = 400.0
REQUEUE_S = 200.0  # SLURM lets a job that it runs again wait for two minutes


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm(tmp_path_factory.mktemp("slurm")) as started:
        yield started


def submit(cluster: Slurm, table: Path, folder: Path, count: int = STEPS) -> str:
    changed = {**SMALL_RUN, "run.steps": count, "run.checkpoint_every": 5, "data.train": str(table)}
    changed |= {"actors.labels": ("cacovid/role=rollout",)}
    (folder / "train.toml").write_text(to_toml(with_overrides(TrainConfig(), changed)))
    options = ["--parsable", "--cpus-per-task=2", f"--output={folder}/log", f"--chdir={DEPLOY.parents[1]}"]
    command = [
        str(DEPLOY / "slurm" / "train.sbatch"),
        "--config",
        str(folder / "train.toml"),
        "--out",
        str(folder / "run"),
    ]
    return cluster.run("sbatch", *options, *command)


def steps(folder: Path) -> list[int]:
    metrics = folder / "run" / "metrics.jsonl"
    return [json.loads(line)["step"] for line in metrics.read_text().splitlines()] if metrics.exists() else []


def driver(folder: Path) -> psutil.Process:
    (found,) = [
        each
        for each in psutil.process_iter()
        if f"{folder}/run" in (line := " ".join(each.cmdline())) and "cacovid train" in line and "python" in line
    ]
    return found


def run_again(cluster: Slurm, job: str) -> None:
    """Wait until SLURM has started the job anew, sooner than it would by itself."""
    wait_until(lambda: cluster.job(job)["JobState"] == "PENDING", RUN_S)
    cluster.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_until(lambda: cluster.job(job)["JobState"] == "RUNNING", REQUEUE_S)


def test_run_that_is_killed_and_told_to_end_goes_on_by_itself_until_it_is_finished(cluster, table, tmp_path):
    job = submit(cluster, table, tmp_path)
    wait_until(lambda: len(steps(tmp_path)) >= 7, RUN_S)
    driver(tmp_path).send_signal(signal.SIGKILL)
    run_again(cluster, job)
    begun = len(steps(tmp_path))
    wait_until(lambda: len(steps(tmp_path)) >= begun + 5, RUN_S)
    cluster.run("scancel", "--batch", "--signal=USR1", job)  # what SLURM does two minutes before the time is up
    run_again(cluster, job)
    saved = len(steps(tmp_path))
    assert saved < STEPS
    wait_until(lambda: cluster.job(job)["JobState"] in ("COMPLETED", "FAILED"), RUN_S)
    fields, log = cluster.job(job), (tmp_path / "log").read_text()
    assert (fields["JobState"], fields["Restarts"], fields["ExitCode"]) == ("COMPLETED", "2", "0:0"), log
    assert steps(tmp_path) == list(range(STEPS))
    assert (tmp_path / "run" / "policy" / "policy.json").is_file()
    assert [f"attempt {number} of job {job}" in log for number in (1, 2, 3, 4)] == [True, True, True, False]
    wait_until(lambda: not [each for each in psutil.pids() if f"ray-{job}" in command_line(each)])


def test_cancelled_job_is_saved_and_not_run_again(cluster, table, tmp_path):
    job = submit(cluster, table, tmp_path, count=10 * STEPS)
    wait_until(lambda: len(steps(tmp_path)) >= 2, RUN_S)
    cluster.run("scancel", job)
    wait_until(lambda: cluster.job(job)["JobState"] == "CANCELLED", RUN_S)
    # The run may end one more step after it was told to: the last of all is the one saved.
    wait_until(lambda: not [each for each in psutil.pids() if f"ray-{job}" in command_line(each)])
    assert (tmp_path / "run" / "checkpoints" / f"step-{len(steps(tmp_path)):06}").is_dir()
    assert cluster.job(job)["Restarts"] == "0"


def test_a_mistake_is_not_repeated(cluster, tmp_path):
    (tmp_path / "train.toml").write_text("[run]\nsteps = 0\n")
    script, config = str(DEPLOY / "slurm" / "train.sbatch"), str(tmp_path / "train.toml")
    options = ["--parsable", "--cpus-per-task=2", f"--output={tmp_path}/log"]
    job = cluster.run("sbatch", *options, script, "--config", config, "--out", str(tmp_path / "run"))
    wait_until(lambda: cluster.job(job)["JobState"] in ("COMPLETED", "FAILED"), RUN_S)
    assert (cluster.job(job)["JobState"], cluster.job(job)["Restarts"]) == ("FAILED", "0")
    assert "run.steps" in (tmp_path / "log").read_text()


def command_line(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return ""
