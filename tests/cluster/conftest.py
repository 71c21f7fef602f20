"""Clusters of several nodes on this machine; nothing here touches Ray processes that it did not start.

Behind the tests stand two tables: what was shown, a row for each text of ``pytest.mark.shows``, and the reliability
table of the schedules that were run.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from tests.integration.conftest import SMALL_RUN, table  # noqa: F401 - a fixture
from tests.support import reliability
from tests.support.disturbed import Alone, Disturbed

STEPS = 6
ROWS = pytest.StashKey[list[reliability.Row]]()
FAST_NOTICE = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_failure_threshold": 3,
}


@pytest.fixture(scope="package")
def head() -> Iterator[Cluster]:
    """A head node with room for learners and a few actors, which the driver has joined."""
    if ray.is_initialized():
        ray.shutdown()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": 4,
            "object_store_memory": 512 << 20,
            "include_dashboard": False,
            "_system_config": FAST_NOTICE,
        },
    )
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def nodes(head: Cluster) -> Iterator[Cluster]:
    """The head node alone; nodes that the test adds go when it ends."""
    yield head
    for node in list(head.worker_nodes):
        head.remove_node(node, allow_graceful=False)


@pytest.fixture
def small(table: Path) -> TrainConfig:  # noqa: F811 - the fixture
    """Six training steps of the embedded default in miniature; learners have room on the head node alone."""
    overrides = {
        **SMALL_RUN,
        "run.steps": STEPS,
        "data.train": str(table),
        "actors.cpus": 0.5,
        "learners.count": 1,
        "learners.cpus": 1.5,
        "learners.record_cache_bytes": 0,
    }
    return with_overrides(TrainConfig(), overrides)


@pytest.fixture(scope="package")
def alone(head: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """The undisturbed runs that others are compared to."""
    return Alone(tmp_path_factory.mktemp("alone"))


@pytest.fixture
def disturbed(alone: Alone, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config) -> Disturbed:
    """Faults, books and the row of the test's schedule."""
    return Disturbed(alone, pytestconfig.stash.setdefault(ROWS, []), monkeypatch)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Reports know their tests' properties, not their markers."""
    for item in items:
        item.user_properties += [("shows", marker.args[0]) for marker in item.iter_markers("shows")]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print what was shown and the schedules that were run; put these where ``--reliability-table`` says."""
    if shown := _shown(terminalreporter.stats):
        terminalreporter.section("shown")
        for line in ("| what | passed | failed | skipped | seconds |", "| --- | --- | --- | --- | --- |", *shown):
            terminalreporter.write_line(line)
    rows = config.stash.get(ROWS, [])
    if rows:
        terminalreporter.section("reliability")
        for line in reliability.lines(rows):
            terminalreporter.write_line(line)
        if path := config.getoption("--reliability-table"):
            reliability.write(rows, path)


def _shown(stats: dict[str, list[Any]]) -> list[str]:
    """A line of Markdown for each text of ``shows``: how its tests ended, and how long they took."""
    ends: dict[str, Counter[str]] = {}
    took: Counter[str] = Counter()
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in stats.get(outcome, []):
            for name, text in report.user_properties:
                if name == "shows":
                    ends.setdefault(text, Counter())["failed" if outcome == "error" else outcome] += 1
                    took[text] += report.duration
    outcomes = ("passed", "failed", "skipped")
    return [
        f"| {text} | {' | '.join(str(ends[text][each]) for each in outcomes)} | {took[text]:.0f} |"
        for text in sorted(ends)
    ]
