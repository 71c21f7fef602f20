"""What Ray is told of a job."""

from pathlib import Path

import pytest
from ray.job_submission import JobDetails
from ray.runtime_env import RuntimeEnv

from cacovid.errors import UserError
from cluster.jobs.submission import exit_code, parse_env, parse_resources, runtime_env, stop_wait


@pytest.mark.parametrize("text", ["driver=1", '{"driver": 1}', ' {"driver": 1.0}'.strip()])
def test_resources_are_read_in_both_notations(text: str) -> None:
    assert parse_resources(text) == {"driver": 1.0}


def test_several_resources() -> None:
    assert parse_resources("driver=1,disk=0.5") == {"driver": 1.0, "disk": 0.5}


@pytest.mark.parametrize("text", ["driver", "driver=", "driver=x", "=1", "driver=0", "{", '{"driver": []}', "[1]", ""])
def test_other_resources_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="are no resources: write driver=1"):
        parse_resources(text)


def test_environment_is_read_up_to_the_first_equals_sign() -> None:
    assert parse_env(["A=1", "B=x=y", "C="]) == {"A": "1", "B": "x=y", "C": ""}


@pytest.mark.parametrize("pair", ["A", "=1", ""])
def test_other_environment_is_refused(pair: str) -> None:
    with pytest.raises(UserError, match="sets nothing"):
        parse_env(["B=1", pair])


def test_the_cluster_has_the_package_unless_it_is_to_be_installed(tmp_path: Path) -> None:
    described = runtime_env(tmp_path, [], stop_wait(120), install=False)
    assert described["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "120"}
    assert described["working_dir"] == str(tmp_path)
    assert "uv" not in described
    RuntimeEnv(**described)  # which Ray takes


def test_the_package_is_installed_by_the_constraints_of_the_checkout(tmp_path: Path) -> None:
    described = runtime_env(tmp_path, ["constraints.txt", "pyproject.toml"], {}, install=True)
    packages = RuntimeEnv(**described).to_dict()["uv"]["packages"]
    assert packages == [
        "--constraint ${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/constraints.txt",
        "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}",
    ]
    with pytest.raises(UserError, match=r"has no constraints\.txt"):
        runtime_env(tmp_path, ["pyproject.toml"], {}, install=True)


@pytest.mark.parametrize(
    ("status", "of_driver", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", 130, 130),
        ("FAILED", -9, 1),
        ("FAILED", None, 1),
        ("STOPPED", None, 130),
    ],
)
def test_the_exit_code_is_the_jobs(status: str, of_driver: int | None, code: int) -> None:
    job = JobDetails(type="SUBMISSION", status=status, entrypoint="cacovid train", driver_exit_code=of_driver)
    assert exit_code(job) == code
