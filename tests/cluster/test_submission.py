"""Jobs on a Ray cluster with a token, by the commands of docs/cluster.md as they stand there."""

import json
import os
import re
import secrets
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from cacovid.config import TrainConfig
from cacovid.config_files import to_toml, with_overrides
from cluster.training.run_directory import RunDirectory
from tests.integration.conftest import SMALL_RUN
from tests.support.head_node import BIN, head_node
from tests.support.ports import free_port
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.shows("Submission: the documented commands, with a token"),
]

ROOT = Path(__file__).parents[2]
START_S = 240.0
TOKEN = secrets.token_hex(32)
PATH = {"PATH": f"{BIN}:{os.environ['PATH']}"}
JOB_ID = r"raysubmit_\w+"
SBATCH = (
    "sbatch --nodes=4 --gpus-per-node=1 cluster/deploy/slurm/train.sbatch --config train.toml --out /shared/runs/mine"
)


IN_SHORT = (ROOT / "README.md").read_text().partition("## On a cluster\n")[2].partition("\n## ")[0]


def documented() -> list[str]:
    """Commands of docs/cluster.md that a test without Kubernetes, a cloud or an object store can run."""
    text = (ROOT / "docs" / "cluster.md").read_text()
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).splitlines()
    return [line for line in blocks if line.startswith(("cacovid ", "ray job")) and "s3://" not in line]


def test_commands_of_the_readme_are_those_that_are_run() -> None:
    """The batch script's are run by test_slurm.py."""
    commands = [line.partition(" #")[0].strip() for line in IN_SHORT.splitlines() if line.startswith("    ")]
    assert set(commands) <= {*documented(), SBATCH}
    assert len(IN_SHORT.strip().splitlines()) <= 15


@dataclass
class Shell:
    """Runs documented commands, with the test's own places in place of the documented ones."""

    environment: Mapping[str, str]
    folder: Path  # where they are run
    places: dict[str, str] = field(default_factory=dict)
    ran: set[str] = field(default_factory=set)

    def start(self, line: str) -> subprocess.Popen[str]:
        """A documented command, in the background."""
        assert line in documented()
        self.ran.add(line)
        words = [self.places.get(word, word) for word in shlex.split(line)]
        return subprocess.Popen(
            words, env=self.environment, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def run(self, line: str) -> str:
        """What a documented command prints, which must succeed."""
        running = self.start(line)
        stdout, stderr = running.communicate(timeout=START_S)
        assert running.returncode == 0, stdout + stderr
        return stdout


class Head(NamedTuple):
    """A head node that asks for a token, and whose jobs find our commands."""

    url: str  # of its dashboard
    files: Path  # of its session
    process: psutil.Process


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    port = free_port()
    options = {"dashboard_port": port, "dashboard_agent_listen_port": free_port(), "resources": '{"driver": 1}'}
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, **PATH}
    with head_node(tmp_path_factory.mktemp("head"), environment, **options) as (process, _):
        (files,) = [word.partition("=")[2] for word in process.cmdline() if word.startswith("--temp-dir=")]
        yield Head(f"http://127.0.0.1:{port}", Path(files), process)


@pytest.fixture(scope="module")
def environment(head: Head) -> dict[str, str]:
    """Of a user of that cluster."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**ours, **PATH, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_API_SERVER_ADDRESS": head.url}


def cacovid(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["cacovid", *arguments], env=environment, capture_output=True, text=True, timeout=START_S, check=False
    )


def config(table: Path) -> TrainConfig:
    """Four steps of several seconds, so that one is under way whenever the run is told to end."""
    overrides = {
        **SMALL_RUN,
        "run.items_per_step": 144,
        "run.checkpoint_every": 50,
        "sampling.group": 64,
        "data.train": str(table),
        "actors.count": 1,
        "actors.cpus": 1,
        "learners.count": 0,
    }
    return with_overrides(TrainConfig(), overrides)


def test_documented_commands_from_the_first_submission_to_the_last_step(environment, table, tmp_path):
    steps, run, work = 4, RunDirectory(tmp_path / "run"), tmp_path / "work"
    work.mkdir()
    (work / "train.toml").write_text(to_toml(config(table)))
    shell = Shell(environment, work)
    shell.places |= {"/shared/runs/mine": str(run.folder), "/mnt/cacovid/work/runs/mine": str(run.folder)}
    shell.places |= {"/mnt/cacovid/config/train.toml": "train.toml"}
    for name in ("cluster/deploy/kuberay/base/cluster/train.toml", "configs/llava-onevision-7b.toml"):
        shell.places[name] = "train.toml"
    shell.places["runs/mine"] = str(run.folder)
    shell.places |= {"/data/runs/mine": str(run.folder), "data.train=/data/train.parquet": f"data.train={table}"}

    follower = shell.start("cacovid submit -- train --config train.toml --out /shared/runs/mine")
    wait_until(lambda: run.rows() or follower.poll() is not None, START_S)
    follower.send_signal(signal.SIGINT)
    stdout, stderr = follower.communicate(timeout=60)
    assert follower.returncode == 130, stdout + stderr
    assert "starting rollout actors and learners" in stdout
    (job,) = set(re.findall(JOB_ID, stderr))
    assert f"the job goes on; look again with: cacovid jobs logs {job} --follow" in stderr
    shell.places["ID"] = job

    listed = shell.run("cacovid jobs list")
    assert re.search(rf"{job} +RUNNING .* cacovid train --config train\.toml --out {run.folder}", listed)
    for line in ("cacovid status /shared/runs/mine", "cacovid status"):
        shown = shell.run(line)
        assert re.search(rf"training, attempt 1\nstep +[1-3] of {steps}", re.sub(r" +\n", "\n", shown)), shown
        assert "1 of 1 ready, 0 lost" in shown
    before = len(run.rows())
    wait_until(lambda: len(run.rows()) > before)
    stopped = shell.run("cacovid jobs stop ID")
    saved = len(run.rows())
    assert before < saved < steps
    assert re.search(rf"{job} +STOPPED", stopped)
    assert "interrupted, attempt 1" in stopped
    assert f"step-{saved:06}" in stopped
    assert run.newest_checkpoint() == run.checkpoint(saved)

    shell.places["ID"] = shell.run(
        "cacovid submit --detach -- train --config train.toml --out /shared/runs/mine"
    ).strip()
    followed = shell.run("cacovid jobs logs ID --follow")
    assert f"going on with the run in {run.folder} from its checkpoint step-{saved:06}" in followed
    assert f"step {steps}/{steps}" in followed
    assert [row["step"] for row in run.rows()] == list(range(steps))
    shown = shell.run("cacovid jobs status ID")
    assert "SUCCEEDED, exit code 0" in shown
    assert "finished, attempt 2" in shown

    for line in documented():
        if line not in shell.ran:  # the same run again, by other ways
            said = {"plan": "learners needed", "status": "finished"}.get(line.split()[1], f"all {steps} steps are done")
            assert said in shell.run(line), line
    assert shell.ran == set(documented())


def test_ray_job_submit_runs_the_checkout(environment, table, tmp_path):
    """The command of the documentation from the repository's root, which .rayignore makes small."""
    out = tmp_path / "run"
    overrides = {"run.steps": 1, "run.items_per_step": 2, "actors.count": 0}
    small = [f"--set={name}={value}" for name, value in {**overrides, "data.train": table}.items()]
    command = [
        "ray",
        "job",
        "submit",
        "--working-dir",
        ".",
        "--",
        "cacovid",
        "train",
        "--config",
        "configs/embedded.toml",
    ]
    command += ["--set=learners.count=0", "--set=objective.replay_batch=2", *small, "--out", str(out)]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=START_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((out / "status.json").read_text())["state"] == "finished"


def test_a_mistake_that_the_job_finds_is_the_followers_exit_code(environment, tmp_path):
    (tmp_path / "train.toml").write_text("[run]\nsed = 1\n")
    arguments = ("--config", "train.toml", "--out", str(tmp_path / "run"))
    done = cacovid(environment, "submit", "--working-dir", str(tmp_path), "--", "train", *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "run.sed: unknown field" in done.stdout
    assert "failed (exit code 2)" in done.stderr


def test_machines_without_the_package_are_told(environment, tmp_path):
    arguments = ("--entrypoint-resources", "driver=1", "--env", "PATH=/usr/bin:/bin", "--", "config")
    done = cacovid(environment, "submit", "--working-dir", str(tmp_path), *arguments)
    assert done.returncode == 127, done.stdout + done.stderr
    assert "no cacovid on the PATH of the machines: install it there or add --install" in done.stderr


def test_a_job_without_a_driver_says_why_it_failed(environment):
    """Ray could not prepare its environment, so there is no log."""
    command = ["ray", "job", "submit", "--no-wait", "--working-dir", "http://127.0.0.1:1/none.zip", "--", "true"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=START_S, check=True)
    job = re.findall(JOB_ID, done.stdout)[0]
    followed = cacovid(environment, "jobs", "logs", job, "--follow")
    assert followed.returncode == 1, followed.stdout + followed.stderr
    assert "runtime_env setup failed" in followed.stderr


def test_a_job_without_room_says_what_it_waits_for(environment, tmp_path):
    arguments = ("--entrypoint-resources", "nowhere=1", "--detach", "--", "config")
    job = cacovid(environment, "submit", "--working-dir", str(tmp_path), *arguments).stdout.strip()
    command = ["cacovid", "jobs", "logs", job, "--follow"]
    follower = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert follower.stdout is not None
    assert "waiting for resources" in follower.stdout.readline()
    follower.send_signal(signal.SIGINT)
    assert follower.wait(60) == 130


@pytest.mark.parametrize(
    ("arguments", "changed", "message"),
    [
        (["jobs", "status", "raysubmit_none"], {}, "no job 'raysubmit_none' at"),
        (["jobs", "stop", "raysubmit_none"], {}, "no job 'raysubmit_none' at"),
        (["jobs", "logs", "raysubmit_none", "--follow"], {}, "no job 'raysubmit_none' at"),
        (["jobs", "list"], {"RAY_AUTH_TOKEN": "0" * 64}, "refuses the token"),
        (["jobs", "list"], {"RAY_AUTH_MODE": "disabled"}, "asks for a token and none was given: set RAY_AUTH_MODE"),
        (["jobs", "list"], {"RAY_AUTH_TOKEN": "", "HOME": "/none"}, "asks for a token and none was given"),
        (["jobs", "list"], {"RAY_AUTH_TOKEN": "", "RAY_AUTH_TOKEN_PATH": "/none"}, "asks for a token and none was"),
        (["jobs", "list", "--address", "http://127.0.0.1:1"], {}, "no Ray cluster at 'http://127.0.0.1:1'"),
    ],
)
def test_mistakes_are_one_line(environment, arguments, changed, message):
    done = cacovid({name: value for name, value in {**environment, **changed}.items() if value}, *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert message in line


def test_the_token_may_lie_in_a_file_and_the_address_in_ray_address(environment, head, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    changed = {
        name: value for name, value in environment.items() if name not in ("RAY_AUTH_TOKEN", "RAY_API_SERVER_ADDRESS")
    }
    changed |= {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "RAY_ADDRESS": head.url}
    assert cacovid(changed, "jobs", "list").returncode == 0
    elsewhere = {**changed, "RAY_ADDRESS": "http://127.0.0.1:1"}
    assert cacovid(elsewhere, "jobs", "list", "--address", head.url).returncode == 0  # the option comes first


@pytest.mark.slow
def test_the_uploaded_checkout_is_installed_beside_ray(environment, head):
    """A copy of Ray's environment gets it, where the machines' PATH has no `cacovid`."""
    arguments = ("--install", "--env", "PATH=/usr/bin:/bin", "--working-dir", str(ROOT), "--", "config")
    done = cacovid(environment, "submit", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[sampling]" in done.stdout
    (installed,) = head.files.glob(
        "session_latest/runtime_resources/uv/*/virtualenv/lib/*/site-packages/cacovid-*.dist-info"
    )
    assert "runtime_resources/working_dir_files" in (installed / "direct_url.json").read_text()


def test_a_follower_whose_cluster_goes_says_so(environment, head, tmp_path):
    """The last test here: it ends the dashboard, and with it the head node."""
    arguments = ("--entrypoint-resources", "nowhere=1", "--", "config")
    command = ["cacovid", "submit", "--working-dir", str(tmp_path), *arguments]
    follower = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert follower.stdout is not None
    assert "Ctrl-C ends the following alone" in follower.stdout.readline()
    assert "waiting for resources" in follower.stdout.readline()
    for process in head.process.children(recursive=True):
        if "dashboard/dashboard.py" in " ".join(process.cmdline()):
            process.kill()
    _, stderr = follower.communicate(timeout=60)
    assert follower.returncode == 2
    (line,) = stderr.splitlines()
    assert re.search(r"lost the (log of job raysubmit_\w+|Ray cluster) at", line)
