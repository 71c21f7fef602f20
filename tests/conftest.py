"""What every test starts from, whatever ran before it and whatever machine it runs on."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.support.s3_server import S3Server, s3_server

hypothesis.settings.register_profile(
    "repeatable",
    derandomize=True,  # the same examples every time
    database=None,
    deadline=None,  # a busy machine is no failure
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reliability-table", type=Path, help="file whose table tests/cluster brings up to date")


def pytest_configure(config: pytest.Config) -> None:
    """The tests talk to this machine alone, and to no Ray cluster but their own; their processes inherit it.

    Only those marked ``gpu`` see GPUs: models would go there by themselves, and compute in bfloat16.
    """
    for name in [name for name in os.environ if name.lower().endswith("_proxy") or name == "RAY_ADDRESS"]:
        del os.environ[name]
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def same_start() -> None:
    """Unseeded draws and the order of float sums depend neither on earlier tests nor on the number of cores."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Server]:
    """One S3 server for all tests of stores."""
    with s3_server() as server:
        yield server
