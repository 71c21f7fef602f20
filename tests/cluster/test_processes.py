"""Processes of a run are killed, stopped or run out of memory: the run goes on to the same policy."""

import json
import math
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from actors.env_runner import RolloutEnvRunner
from cacovid.config import TrainConfig
from cacovid.config_files import to_toml, with_overrides
from cacovid.data.order import ItemOrder
from cacovid.data.table import read_questions
from cacovid.errors import BadItem
from cacovid.policy.base import CompressionPolicy
from cluster.training.cpo import CPO
from cluster.training.run_directory import RunDirectory
from tests.support.disturbed import Disturbed, cacovid_train
from tests.support.hosts import small_memory
from tests.support.joined_node import joined_node
from tests.support.killing import actor_pids, kill, learner_pids
from tests.support.processes import is_running
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.shows("Killed and stopped processes")]
NODE_BYTES = 4 << 30


def test_rollout_actor_killed(
    nodes: Cluster, disturbed: Disturbed, small: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    disturbed.after(2, lambda algorithm: kill(actor_pids(algorithm)[:1]))
    trained = disturbed.train(small, tmp_path / "run")
    assert trained.run.rows()[-1]["lost_actors"] == 1
    assert re.search(r"rollout actor \d was lost on node \w+ \(killed\): .* kill -9", caplog.text)
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


def stop_after(disturbed: Disturbed, steps: int, find: Callable[[CPO], list[int]]) -> list[int]:
    """SIGSTOP of the first process that ``find`` names, after ``steps`` training steps; its pid, once it happened."""
    stopped: list[int] = []

    def stop(algorithm: CPO) -> None:
        stopped.append(find(algorithm)[0])
        os.kill(stopped[0], signal.SIGSTOP)

    disturbed.after(steps, stop)
    return stopped


def test_rollout_actor_stopped(nodes: Cluster, disturbed: Disturbed, small: TrainConfig, tmp_path: Path) -> None:
    """No task is ever answered; once one is overdue the process goes, and a new one does them."""
    config = with_overrides(small, {"actors.task_timeout_s": 10, "actors.count": 1})
    stopped = stop_after(disturbed, 2, actor_pids)
    trained = disturbed.train(config, tmp_path / "run")
    disturbed.check("SIGSTOP of the only rollout actor, `actors.task_timeout_s` 10", config, trained.weights)
    wait_until(lambda: not is_running(stopped[0]))


def test_learner_stopped(nodes: Cluster, disturbed: Disturbed, small: TrainConfig, tmp_path: Path) -> None:
    """The group is started anew, and the stopped process goes."""
    config = with_overrides(small, {"learners.timeout_s": 10, "actors.count": 1})
    stopped = stop_after(disturbed, 3, learner_pids)
    trained = disturbed.train(config, tmp_path / "run")
    disturbed.check("SIGSTOP of the learner, `learners.timeout_s` 10", config, trained.weights)
    wait_until(lambda: not is_running(stopped[0]))


def test_out_of_memory(
    nodes: Cluster, disturbed: Disturbed, small: TrainConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The actor takes memory until Ray kills it, as it does where a node has hardly any left."""
    config = with_overrides(small, {"actors.labels": ["role=rollout"], "actors.count": 1})

    def take_memory(runner: RolloutEnvRunner) -> None:
        taken = []
        for _ in range(NODE_BYTES >> 23):
            taken.append(b"x" * (8 << 20))
            time.sleep(0.03)  # Ray looks four times a second, the kernel always
        time.sleep(600)

    disturbed.after(2, lambda algorithm: algorithm.pool.handles()[0].apply.remote(take_memory))
    with small_memory(NODE_BYTES) as inside, joined_node(tmp_path / "node", nodes.address, inside=inside):
        trained = disturbed.train(config, tmp_path / "run")
    assert trained.run.rows()[-1]["lost_actors"] == 1
    assert "(out_of_memory): Ray killed it to save its node" in caplog.text
    disturbed.check("the only rollout actor out of memory", config, trained.weights)


def test_poisoned_item(
    nodes: Cluster, disturbed: Disturbed, small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever decodes it dies: after ``actors.max_retries`` deaths it is set aside, and no other one is."""
    config = with_overrides(small, {"data.max_skipped": 0.5})
    order = ItemOrder(read_questions(Path(config.data.train)), config.run.items_per_step, config.run.seed)
    poison = order.of_step(2)[1].id

    class Poisoned(RolloutEnvRunner):
        def _roll_out(self, item, *arguments):
            if item.id == poison:
                time.sleep(1)  # else the answer before may be lost with the process, and its item be blamed
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._roll_out(item, *arguments)

    def refuse(runner, item, *arguments):
        if item.id == poison:
            raise BadItem("poison")
        return plain_roll_out(runner, item, *arguments)

    plain_roll_out = RolloutEnvRunner._roll_out
    monkeypatch.setattr(RolloutEnvRunner, "_roll_out", refuse)  # of the undisturbed run, in this process
    monkeypatch.setattr(CPO, "actor_class", Poisoned)
    monkeypatch.setattr("actors.pool.SLOW_FACTOR", math.inf)  # nobody does it besides because it is late
    disturbed.after(1, lambda algorithm: None)  # then the item is given out
    trained = disturbed.train(config, tmp_path / "run")
    (line,) = trained.run.skipped.read_text().splitlines()
    skipped = json.loads(line)
    assert skipped["id"] == poison
    assert f"failed {config.actors.max_retries} times" in skipped["reason"]
    assert trained.run.rows()[-1]["lost_actors"] == config.actors.max_retries
    name = "item whose decoding kills: set aside after 3 deaths"
    disturbed.check(name, config, trained.weights, set_aside=1)


def test_driver_killed(nodes: Cluster, disturbed: Disturbed, small: TrainConfig, tmp_path: Path) -> None:
    """`cacovid train` after its third step; `cacovid train --resume` then does that one again."""
    config = with_overrides(small, {"run.steps": 10, "actors.count": 1})
    (tmp_path / "config.toml").write_text(to_toml(config))
    run = RunDirectory(tmp_path / "run")
    first = cacovid_train(nodes.address, "--config", str(tmp_path / "config.toml"), "--out", str(run.folder))

    def wait_for(process: subprocess.Popen[bytes], steps: int) -> None:
        def done() -> bool:
            assert process.poll() in (None, 0), "the driver ended by itself"
            return len(run.rows()) >= steps

        wait_until(done, 200)
        disturbed.note(len(run.rows()))

    try:
        wait_for(first, 3)
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()
    disturbed.fault()
    rows = len(run.rows())
    assert rows < config.run.steps
    second = cacovid_train(nodes.address, "--resume", str(run.folder))
    try:
        wait_until(lambda: len(run.rows()) < rows or second.poll() is not None, 200)  # back at the checkpoint
        wait_for(second, rows + 2)
        assert second.wait(100) == 0
    finally:
        second.kill()
    disturbed.read(run, config)
    weights = CompressionPolicy.from_pretrained(run.policy).state_dict()
    disturbed.check("`kill -9` of the driver, `--resume` at once", config, weights)
