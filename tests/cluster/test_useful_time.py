"""A kill after every tenth of a run: how much of its time is not lost."""

import os
import signal
import threading
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil
import pytest
from ray._private import state
from ray.cluster_utils import Cluster

from actors.env_runner import RolloutEnvRunner
from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cluster.training.cpo import CPO
from tests.support.disturbed import Disturbed
from tests.support.joined_node import joined_node
from tests.support.killing import kill, learner_pids

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.shows("Useful time under kills"),
]

STEPS, ITEM_S = 300, 1.0
TENTH = STEPS // 10
FIRST_KILL = TENTH + 5  # in the middle between two checkpoints
WARM_UP = 5  # steps


def test_kill_after_every_tenth_of_a_run(
    nodes: Cluster, disturbed: Disturbed, small: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rollout actor, the learner, a rollout node in turn; a new node comes at once.

    Actors rest for a second an item, as they do where a GPU works: a process that starts takes no time from them.
    """
    config = with_overrides(
        small,
        {
            "run.steps": STEPS,
            "run.checkpoint_every": 10,
            "actors.labels": ["role=rollout"],
            "actors.cpus": 1,
            "learners.max_restarts": 10,
        },
    )

    class Resting(RolloutEnvRunner):
        def _roll_out(self, *arguments):
            import time

            time.sleep(ITEM_S)
            return super()._roll_out(*arguments)

    monkeypatch.setattr(CPO, "actor_class", Resting)
    with ExitStack() as stack:
        rollout_nodes: list[psutil.Process] = []

        def add() -> None:
            folder = tmp_path / f"node-{len(list(tmp_path.glob('node-*')))}"
            rollout_nodes.append(stack.enter_context(joined_node(folder, nodes.address)))

        def kill_actor(algorithm: CPO) -> None:
            living = [actor for actor in state.actors().values() if actor["State"] == "ALIVE"]
            os.kill(next(actor["Pid"] for actor in living if "Resting" in actor["ActorClassName"]), signal.SIGKILL)

        def kill_learner(algorithm: CPO) -> None:
            kill(learner_pids(algorithm))

        def kill_node(algorithm: CPO) -> None:
            oldest = rollout_nodes.pop(0)
            for process in [*oldest.children(recursive=True), oldest]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            replacement = threading.Thread(target=add)
            replacement.start()
            stack.callback(replacement.join)

        add()
        add()
        kinds = (kill_actor, kill_learner, kill_node)
        for number, steps in enumerate(range(FIRST_KILL, STEPS, TENTH)):
            disturbed.after(steps, kinds[number % len(kinds)])
        trained = disturbed.train(config, tmp_path / "run")
    useful = disturbed.useful_time(WARM_UP)
    name = "`kill -9` of actor, learner, node in turn, one every tenth of a run"
    disturbed.check(name, config, trained.weights, useful=useful)
    assert useful >= 0.9
