"""A real Prometheus, and what Grafana would ask it."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2 as httpx
import pytest
import yaml

from tests.support.ports import free_port
from tests.support.waiting import PATIENCE_S, get, wait_until

GRAFANA = Path(__file__).parents[2] / "cluster" / "deploy" / "grafana"
SHIPPED = GRAFANA / "prometheus.yml"


@dataclass(frozen=True)
class Query:
    """One line of a panel."""

    dashboard: str
    panel: str
    text: str  # with Grafana's variables

    def filled(self, run: str) -> str:
        text = self.text.replace("$__rate_interval", "30s").replace("$run", run)
        assert "$" not in text, "a variable that the test does not know"
        return text


def queries() -> list[Query]:
    """Of all dashboards."""
    return [
        Query(path.stem, panel["title"], target["expr"])
        for path in sorted(GRAFANA.glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        for target in panel["targets"]
    ]


@contextmanager
def prometheus(folder: Path, discovery: Path, service: str) -> Iterator[str]:
    """Its address, with the shipped configuration for this cluster and service, asking each second."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("no prometheus here: apt-get install prometheus")
    config = yaml.safe_load(SHIPPED.read_text())
    config["global"]["scrape_interval"] = "1s"
    ray, serving = config["scrape_configs"]
    ray["file_sd_configs"][0] |= {"files": [str(discovery)], "refresh_interval": "1s"}
    serving["static_configs"][0]["targets"] = [service]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{free_port()}"
    command = [program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}"]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={url[7:]}"], stdout=log, stderr=log)
    try:
        wait_until(lambda: is_ready(url))
        yield url
    finally:
        process.kill()
        process.wait()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/-/ready", timeout=PATIENCE_S).status_code == 200
    except httpx.TransportError:
        return False


def samples(url: str, query: str) -> list[dict]:
    """What ``query`` gives at the moment."""
    answer = get(f"{url}/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", (query, answer)
    return answer["data"]["result"]
