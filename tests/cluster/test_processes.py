"""Processes of a run are killed, stopped or run out of memory: the run goes on to the same policy."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

import actors.host
from actors.env_runner import RolloutEnvRunner
from cacovid.config import TrainConfig
from cacovid.config_files import to_toml, with_overrides
from cacovid.errors import BadItem
from cluster.training.cpo import CPO
from cluster.training.run import train
from cluster.training.run_directory import RunDirectory
from tests.integration.conftest import finished
from tests.support.disturbed import Disturbed
from tests.support.killing import actor_pids, kill, learner_pids
from tests.support.processes import is_running
from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster


def test_rollout_actor_killed(nodes: Cluster, disturbed: Disturbed, small: TrainConfig, tmp_path: Path) -> None:
    disturbed.after(2, lambda algorithm: kill(actor_pids(algorithm)[:1]))
    trained = disturbed.train(small, tmp_path / "run")
    assert trained.run.rows()[-1]["lost_actors"] == 1
    disturbed.check("`kill -9` of one of 2 rollout actors", small, trained.weights)


@pytest.mark.parametrize(("learners", "rank"), [(1, 0), (2, 1)])
def test_learner_killed(
    learners: int, rank: int, nodes: Cluster, disturbed: Disturbed, small: TrainConfig, tmp_path: Path
) -> None:
    """After step 3: it is done again from the checkpoint of step 2."""
    config = with_overrides(small, {"learners.count": learners, "actors.count": 1})
    disturbed.after(3, lambda algorithm: kill([learner_pids(algorithm)[rank]]))
    trained = disturbed.train(config, tmp_path / "run")
    disturbed.check(f"`kill -9` of learner {rank} of {learners}", config, trained.weights)


def test_rollout_actor_stopped(nodes: Cluster, disturbed: Disturbed, small: TrainConfig, tmp_path: Path) -> None:
    """No task is ever answered; once one is overdue the process goes, and a new one does them."""
    config = with_overrides(small, {"actors.task_timeout_s": 10, "actors.count": 1})
    stopped: list[int] = []

    def stop(algorithm: CPO) -> None:
        stopped.extend(actor_pids(algorithm)[:1])
        os.kill(stopped[0], signal.SIGSTOP)

    disturbed.after(2, stop)
    trained = disturbed.train(config, tmp_path / "run")
    disturbed.check("SIGSTOP of the only rollout actor, `actors.task_timeout_s` 10", config, trained.weights)
    wait_until(lambda: not is_running(stopped[0]))


def test_learner_stopped(nodes: Cluster, disturbed: Disturbed, small: TrainConfig, tmp_path: Path) -> None:
    """The group is started anew, and the stopped process goes."""
    config = with_overrides(small, {"learners.timeout_s": 10, "actors.count": 1})
    stopped: list[int] = []

    def stop(algorithm: CPO) -> None:
        stopped.extend(learner_pids(algorithm))
        os.kill(stopped[0], signal.SIGSTOP)

    disturbed.after(3, stop)
    trained = disturbed.train(config, tmp_path / "run")
    disturbed.check("SIGSTOP of the learner, `learners.timeout_s` 10", config, trained.weights)
    wait_until(lambda: not is_running(stopped[0]))


def test_out_of_memory(nodes: Cluster, disturbed: Disturbed, small: TrainConfig, tmp_path: Path) -> None:
    """One of two actors takes memory until Ray kills it, as it does where a node has hardly any left."""
    memory = psutil.virtual_memory()
    if memory.available < 3 << 30:
        pytest.skip(f"{memory.available >> 20} MiB of memory are left here, this test needs 3 GiB")
    limit = (memory.total - memory.available + (1 << 30)) / memory.total
    monitor = {"RAY_memory_usage_threshold": f"{limit:.3f}", "RAY_memory_monitor_refresh_ms": "100"}
    nodes.add_node(num_cpus=1, labels={"room": "little"}, env_vars=os.environ | monitor)
    config = with_overrides(small, {"actors.labels": ["room=little"]})

    def fill(algorithm: CPO) -> None:
        algorithm.pool.handles()[0].apply.remote(take_memory)

    disturbed.after(2, fill)
    trained = disturbed.train(config, tmp_path / "run")
    assert trained.run.rows()[-1]["lost_actors"] >= 1
    disturbed.check("one of 2 rollout actors out of memory", config, trained.weights)


def take_memory(runner: RolloutEnvRunner) -> None:
    """Up to 2 GiB within two seconds, for as long as the process lives."""
    taken = []
    for _ in range(20):
        taken.append(b"x" * (100 << 20))
        time.sleep(0.1)
    time.sleep(600)


def test_poisoned_item(
    nodes: Cluster, disturbed: Disturbed, small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever decodes it dies: after ``actors.max_retries`` deaths it is set aside, and no other one is."""
    config = with_overrides(small, {"data.max_skipped": 0.5})
    poison: list[str] = []

    class Poisoned(RolloutEnvRunner):
        """Dies of the item in a process of its own; the driver alone refuses it."""

        def _roll_out(self, item, *arguments):
            if item.id != poison[0]:
                return super()._roll_out(item, *arguments)
            if not self.worker_index:
                raise BadItem("poison")
            os.kill(os.getpid(), signal.SIGKILL)

    plain_start = actors.pool.RolloutPool.start
