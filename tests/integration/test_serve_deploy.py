"""``serve deploy serving/config.yaml`` with Ray's own client, on a cluster as an operator starts one."""

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import psutil
import pytest
import yaml

import serving
from tests.support.head_node import BIN, head_node
from tests.support.ports import free_port
from tests.support.serving_server import policy_folder
from tests.support.waiting import get, wait_until
from tests.unit.serving.test_api import messages

pytestmark = pytest.mark.slow  # a Ray cluster of its own, with a dashboard

SHIPPED = Path(serving.__file__).parent / "config.yaml"
PATIENCE_S = 200.0


@dataclass
class Cluster:
    """A head node that asks for a token, as docs/security.md advises."""

    head: psutil.Process
    dashboard: str
    environment: dict[str, str]

    def serve(self, *arguments: str) -> None:
        """Run Ray's ``serve``."""
        command = [str(BIN / "serve"), *arguments, "--address", self.dashboard]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr[-2000:]

    def engines(self) -> list[int]:
        """Process ids of the engine replicas."""
        mine = self.head.children(recursive=True)
        return [each.pid for each in mine if "ServeReplica:cacovid:engine" in " ".join(each.cmdline())]


@pytest.fixture(scope="module")
def operators_cluster(tmp_path_factory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("ray")
    (folder / "token").write_text(secrets.token_hex(32))
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    dashboard = free_port()
    with head_node(folder, environment, include_dashboard="true", dashboard_port=dashboard) as (head, _):
        cluster = Cluster(head, f"http://127.0.0.1:{dashboard}", os.environ | environment)
        yield cluster
        cluster.serve("shutdown", "--yes")


def listed(url: str) -> list[str]:
    """Model ids; none before the service is there."""
    with suppress(httpx.TransportError):
        answer = get(f"{url}/v1/models")
        if answer.status_code == 200:
            return [model["id"] for model in answer.json()["data"]]
    return []


def test_the_shipped_file_is_deployed_and_other_policies_go_into_the_running_engine(operators_cluster, tmp_path):
    fields = yaml.safe_load(SHIPPED.read_text())
    fields["http_options"]["port"] = free_port()
    url = f"http://127.0.0.1:{fields['http_options']['port']}"

    def deploy(policies: dict[str, str]) -> None:
        fields["applications"][0]["deployments"][0]["user_config"]["policies"] = policies
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(fields))
        operators_cluster.serve("deploy", str(tmp_path / "config.yaml"))

    deploy({})
    wait_until(lambda: listed(url) == ["embedded"], PATIENCE_S)
    before = operators_cluster.engines()
    deploy({"mine": policy_folder()})
    wait_until(lambda: listed(url) == ["mine", "embedded"], PATIENCE_S)
    assert operators_cluster.engines() == before
    assert len(before) == 1
    body = {"model": "mine", "messages": messages(), "max_tokens": 4}
    assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_S).status_code == 200
