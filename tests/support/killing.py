"""``kill -9`` of training processes at a chosen moment."""

import os
import signal
from collections.abc import Callable

import pytest

from cluster.training.cpo import CPO
from tests.support.waiting import wait_until


def actor_pids(algorithm: CPO) -> list[int]:
    """Of all rollout actors, once they are ready."""
    wait_until(lambda: len(algorithm.pool.handles()) == algorithm.train_cfg.actors.count)
    algorithm._show_actors()
    pids: list[int] = algorithm.env_runner_group.foreach_env_runner(lambda runner: os.getpid(), local_env_runner=False)
    return pids


def learner_pids(algorithm: CPO) -> list[int]:
    pids: list[int] = algorithm.learner_group.foreach_learner(lambda learner: os.getpid())
    return pids


def kill(pids: list[int]) -> None:
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def kill_after_step(monkeypatch: pytest.MonkeyPatch, step: int, victims: Callable[[CPO], list[int]]) -> list[int]:
    """Kill ``victims``, once, when ``step`` training steps are done first; they then stand in the list returned."""
    plain_step = CPO.training_step
    killed: list[int] = []

    def step_then_kill(algorithm: CPO) -> None:
        plain_step(algorithm)
        if algorithm.finished_steps == step and not killed:
            killed.extend(victims(algorithm))
            kill(killed)

    monkeypatch.setattr(CPO, "training_step", step_then_kill)
    return killed
