"""``cacovid serve`` on a machine and a cluster where others serve too."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.support.head_node import head_node
from tests.support.ports import free_port
from tests.support.serving_command import ServeCommand, command
from tests.support.waiting import get

pytestmark = pytest.mark.slow  # a Ray cluster of its own, and one more for the command

ROUTE = "/others"


@dataclass
class Shared:
    """A cluster where somebody else's application answers."""

    address: str
    port: int

    def deploy(self, route: str = ROUTE) -> None:
        program = [sys.executable, "-m", "tests.support.other_application", self.address, str(self.port), route]
        subprocess.run(program, check=True, timeout=120)

    def others(self, route: str = ROUTE) -> str:
        """What the other application says: when it was started."""
        answer = get(f"http://127.0.0.1:{self.port}{route}")
        assert answer.status_code == 200, answer.text
        return answer.text


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Iterator[str]:
    """Of a cluster without Serve."""
    no_token = {"RAY_AUTH_MODE": "disabled"}  # nor the one that another cluster of this machine may have left
    with head_node(tmp_path_factory.mktemp("ray"), no_token, include_dashboard="false") as (_, where):
        yield where


@pytest.fixture(scope="module")
def shared(address) -> Shared:
    cluster = Shared(address, free_port())
    cluster.deploy()
    return cluster


def models(port: int) -> list[str]:
    return [model["id"] for model in get(f"http://127.0.0.1:{port}/v1/models").json()["data"]]


def refused(*arguments: str) -> str:
    """What a command that cannot serve says."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]  # Ray's processes may have told of it before
    assert last.startswith("error: "), done.stderr
    return last


def test_a_port_that_the_head_node_does_not_have_is_told_and_no_serve_is_left_on_it(address):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot serve on 127.0.0.1:{port}" in refused("--address", address, "--port", str(port))


def test_without_an_address_it_serves_on_its_own_port_and_leaves_a_cluster_that_is_there_alone(shared):
    before, port = shared.others(), free_port()
    with ServeCommand("--port", str(port), environment={"RAY_ADDRESS": shared.address}) as running:
        running.wait_for("model ids")
        assert models(port) == ["embedded"]
        assert running.end() == 0
    assert shared.others() == before


def test_with_an_address_it_comes_and_goes_and_the_others_stay(shared):
    before = shared.others()
    arguments = ("--address", shared.address, "--port", str(shared.port))
    for _ in range(2):
        with ServeCommand(*arguments) as running:
            running.wait_for("model ids")
            assert models(shared.port) == ["embedded"]
            assert shared.others() == before
            assert "'cacovid' runs there already" in refused(*arguments)
            assert models(shared.port) == ["embedded"]
            assert running.end() == 0
        assert shared.others() == before
        assert get(f"http://127.0.0.1:{shared.port}/v1/models").status_code == 404


def test_a_port_or_host_that_serve_does_not_listen_on_is_told(shared):
    port = free_port()
    said = refused("--address", shared.address, "--port", str(port))
    assert f"127.0.0.1:{shared.port}" in said
    assert f"127.0.0.1:{port}" in said
    assert f"::1:{shared.port}" in refused("--address", shared.address, "--host", "::1", "--port", str(shared.port))
    shared.others()


def test_a_route_that_the_others_have_is_told(shared):
    shared.deploy("/")
    try:
        said = refused("--address", shared.address, "--port", str(shared.port))
        assert "'others' answers at /" in said
        shared.others("/")
    finally:
        shared.deploy()
