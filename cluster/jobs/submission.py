"""What Ray is told of a job, and what becomes of it."""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.job_submission import JobDetails, JobStatus

from cacovid.errors import UserError
from cluster.jobs.client import JobApi, ended
from cluster.jobs.package import EXCLUDES
from cluster.training.run_status import RunStatus, copy_name

INTERRUPTED = 130  # as of a command that Ctrl-C ended
POLL_S = 0.5
PROJECT = ("constraints.txt", "pyproject.toml")
WORKING_DIR = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"  # where a machine has unpacked it


def runtime_env(working_dir: Path, packed: Collection[str], env: Mapping[str, str], install: bool) -> dict[str, Any]:
    """Of a job's processes: the working directory, the environment, and on request the package with our pins.

    Raises:
        UserError: To install there is no checkout in ``working_dir``.
    """
    described: dict[str, Any] = {
        "working_dir": str(working_dir.absolute()),
        "excludes": list(EXCLUDES),
        "env_vars": dict(env),
    }
    if install:
        if missing := [name for name in PROJECT if name not in packed]:
            raise UserError(
                f"--install installs the checkout that is uploaded, but {working_dir} has no {missing[0]}: give the "
                "checkout's root with --working-dir"
            )
        # Ray's uv (not its pip) builds the environment anew when the files in the working directory change.
        described["uv"] = {"packages": [f"--constraint {WORKING_DIR}/constraints.txt", WORKING_DIR]}
    return described


def stop_wait(seconds: int) -> dict[str, str]:
    """Environment of a job that has ``seconds`` between SIGTERM and SIGKILL, of which Ray gives 3 by itself.

    The process that reads it is the job's supervisor, which has the job's environment.
    """
    return {"RAY_JOB_STOP_WAIT_TIME_S": str(seconds)}


def parse_env(pairs: Sequence[str]) -> dict[str, str]:
    """``["HF_HOME=/shared/hub"]`` -> ``{"HF_HOME": "/shared/hub"}``. Raises UserError for anything else."""
    found = dict(pair.partition("=")[::2] for pair in pairs)
    if wrong := [pair for pair in pairs if not pair.partition("=")[0] or "=" not in pair]:
        raise UserError(f"--env {wrong[0]!r} sets nothing: write --env NAME=VALUE")
    return found


def parse_resources(text: str) -> dict[str, float]:
    """``driver=1`` or ``{"driver": 1}`` -> ``{"driver": 1.0}``. Raises UserError for anything else."""
    try:
        pairs = json.loads(text) if text.startswith("{") else dict(pair.split("=") for pair in text.split(","))
        found = {str(name).strip(): float(amount) for name, amount in pairs.items()}
        if all(name and amount > 0 for name, amount in found.items()):
            return found
    except (ValueError, TypeError):
        pass
    raise UserError(f'--entrypoint-resources {text!r} are no resources: write driver=1 or {{"driver": 1}}')


async def follow(api: JobApi, id: str, show: Callable[[str], None]) -> None:
    """Hand what the job prints to ``show`` until it ends."""
    async for lines in api.tail(id):
        show(lines)


def wait(api: JobApi, id: str) -> JobDetails:
    """The job, once it has ended."""
    while not ended(job := api.job(id)):
        time.sleep(POLL_S)
    return job


def exit_code(job: JobDetails) -> int:
    """Of who followed the job to its end: the job's own, 1 if it has none, 130 if it was stopped."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.status == JobStatus.STOPPED:
        return INTERRUPTED
    return job.driver_exit_code if job.driver_exit_code is not None and job.driver_exit_code > 0 else 1


def run_of(api: JobApi, job: JobDetails) -> RunStatus | None:
    """Where the run of this job's driver stands; None if it has none, or its machine is gone."""
    if job.job_id is None:
        return None
    name = copy_name(job.job_id)
    content = api.log_file(job, name)
    return None if content is None else RunStatus.parse(content, f"{name} at {api.address}")
