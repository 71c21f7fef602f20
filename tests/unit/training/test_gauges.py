"""A run's figures for Prometheus; that they arrive there: tests/cluster/test_dashboards.py."""

import re
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from actors.pool_state import PoolState
from cluster.training import gauges
from cluster.training.gauges import Gauges
from cluster.training.step_metrics import rollout_metrics
from tests.support.prometheus import queries
from tests.support.waiting import wait_until
from tests.unit.training.test_step_metrics import KNOWN, rolled_out

DOCS = Path(__file__).parents[3] / "docs" / "observability.md"
Shown = dict[str, dict[str, float]]  # values by tags, by name


@dataclass
class Pool:
    """Its state is what the test says."""

    now: PoolState = field(default_factory=lambda: PoolState(waiting=3, given_out=2, requeued=0, wanted=2, ready=1))

    def state(self) -> PoolState:
        return self.now


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """What Ray's metrics would export."""
    values: Shown = defaultdict(lambda: defaultdict(float))

    def show(metric, value, tags=None):
        tags = metric._get_final_tags(tags)
        metric._validate_tags(tags)
        labels = ",".join(tags[name] for name in metric._tag_keys)
        values[metric.info["name"]][labels] = value + adds(metric) * values[metric.info["name"]][labels]

    def adds(metric) -> bool:
        return isinstance(metric, gauges.Counter)

    monkeypatch.setattr("ray.util.metrics.Metric._record", show)
    return values


def row() -> dict[str, float]:
    losses = [{"loss": 1.5, "learner_gpu_bytes": 7e9}]
    return {**rollout_metrics(rolled_out(), losses, KNOWN), "seconds": 2.0, "combinations_per_second": 16.0}


def test_row_and_state_are_shown_and_counters_add_up(shown: Shown) -> None:
    pool = Pool()
    with Gauges("fruit", 2, 120, pool) as watched:
        watched.add(row())
        watched.add(row() | {"step": 4, "reward": 0.25})
        pool.now = replace(pool.now, requeued=2, deaths={"killed": 1}, busy_seconds=3.0, gpu_bytes={1: 5})
        watched.learners_died("overdue")
    assert shown["cacovid_step"] == {"fruit": 5}
    assert shown["cacovid_reward"] == {"fruit": 0.25}
    assert shown["cacovid_combinations_total"] == {"fruit": 2 * row()["combinations"]}
    assert shown["cacovid_actors"]["fruit,ready"] == 1
    assert shown["cacovid_tasks"] == {"fruit,waiting": 3, "fruit,given_out": 2}
    assert shown["cacovid_actor_deaths_total"] == {"fruit,killed": 1}
    assert shown["cacovid_requeued_tasks_total"] == {"fruit": 2}
    assert shown["cacovid_learner_restarts_total"] == {"fruit,overdue": 1}
    assert shown["cacovid_gpu_memory_bytes"] == {"fruit,learner": 7e9, "fruit,actor 1": 5}


def test_pool_moves_within_a_step(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "REFRESH_SECONDS", 0.01)
    pool = Pool()
    with Gauges("fruit", 1, 120, pool):
        assert "cacovid_step" not in shown
        for deaths in (1, 2):
            pool.now = replace(pool.now, waiting=10 + deaths, deaths={"exit": deaths})
            wait_until(lambda: shown["cacovid_tasks"]["fruit,waiting"] == 10 + pool.now.deaths["exit"])
    assert shown["cacovid_actor_deaths_total"] == {"fruit,exit": 2}


def test_dashboards_and_docs_name_what_there_is(shown: Shown) -> None:
    pool = Pool(PoolState(1, 1, 1, deaths={"exit": 1}, busy_seconds=1.0, ready_seconds=2.0))
    with Gauges("fruit", 1, 120, pool) as watched:
        watched.add(row() | {"encode_seconds": 1.0, "actor_seconds": 2.0})
        watched.learners_died("exit")
    used = {name for each in queries() for name in re.findall(r"ray_(cacovid_\w+)", each.text)}
    assert used == shown.keys()
    told = set(re.findall(r"`(cacovid_\w+)`", DOCS.read_text()))
    assert told == shown.keys()
