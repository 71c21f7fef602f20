"""A training run that is disturbed on purpose, and whether it came to what an undisturbed one comes to."""

import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from actors.task import TaskResult
from cacovid.config import ActorsConfig, LearnersConfig, TrainConfig
from cacovid.data.order import ItemOrder
from cacovid.data.table import read_questions
from cluster.training.cpo import CPO, CPOConfig
from cluster.training.run_directory import RunDirectory
from cluster.training.updates import Updates
from learner.group import DeepSpeedLearnerGroup
from tests.integration.conftest import Trained, run_training
from tests.support.reliability import Row

Weights = dict[str, torch.Tensor]
Fault = Callable[[CPO], object]
STALENESS = ActorsConfig().staleness


@contextmanager
def running(config: TrainConfig, folder: Path) -> Iterator[CPO]:
    """An algorithm whose steps the test takes itself."""
    algorithm: CPO = CPOConfig.from_train_config(config).training(run_dir=str(folder)).build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()


def cacovid_train(address: str, *arguments: str) -> subprocess.Popen[bytes]:
    """The command, in a session of its own, joined to the cluster at ``address``."""
    command = [sys.executable, "-m", "cluster.commands.main", "train", "--address", address, *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True, cwd=Path(__file__).parents[2])


class Alone:
    """Policies of the same runs in the driver alone, which nothing can disturb."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._weights: dict[tuple[str, int], Weights] = {}

    def weights(self, config: TrainConfig, steps: int) -> Weights:
        """After ``steps`` training steps of ``config``."""
        actors = ActorsConfig(count=0, staleness=config.actors.staleness)
        alone = config.model_copy(update={"actors": actors, "learners": LearnersConfig(count=0)})
        key = (alone.model_dump_json(), steps)
        if key not in self._weights:
            with running(alone, self._folder / str(len(self._weights))) as algorithm:
                for _ in range(steps):
                    algorithm.train()
                self._weights[key] = algorithm.get_policy().state_dict()
        return self._weights[key]


class Disturbed:
    """Faults at chosen steps of one run, and its books: which items each step learned from, and when it was finished.

    Only runs with rollout actors are looked at.
    """

    def __init__(self, alone: Alone, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
        self.alone = alone
        self.rows = rows
        self._due: dict[int, Fault] = {}
        self._learned: dict[int, list[str]] = {}  # item ids by step, as done last
        self._expected: dict[int, list[str]] = {}
        self._finished: list[tuple[int, float]] = [(0, time.monotonic())]  # steps, when
        self._faults: list[tuple[int, float]] = []  # steps finished by then, when
        plain_learn, plain_step = Updates.learn, CPO.training_step

        def learn(
            updates: Updates, group: DeepSpeedLearnerGroup, step: int, results: Sequence[TaskResult]
        ) -> list[dict[str, float]]:
            losses = plain_learn(updates, group, step, results)
            self._learned[step] = [rollout.item_id for result in results for rollout in result.rollouts]
            return losses

        def training_step(algorithm: CPO) -> None:
            plain_step(algorithm)
            if algorithm.train_cfg.actors.places:
                self._finish(algorithm)

        monkeypatch.setattr(Updates, "learn", learn)
        monkeypatch.setattr(CPO, "training_step", training_step)

    def after(self, steps: int, fault: Fault) -> None:
        """Let ``fault`` happen, once, when ``steps`` training steps are finished first."""
        self._due[steps] = fault

    def fault(self) -> None:
        """A fault happens now."""
        self._faults.append((self._finished[-1][0], time.monotonic()))

    def train(self, config: TrainConfig, folder: Path) -> Trained:
        """The whole run, as `cacovid train` does it."""
        return run_training(config, folder)

    def note(self, steps: int) -> None:
        """``steps`` training steps are finished now."""
        self._finished.append((steps, time.monotonic()))

    def read(self, run: RunDirectory, config: TrainConfig) -> None:
        """Take what was learned from the last checkpoint of a run in another process."""
        order = ItemOrder(read_questions(Path(config.data.train)), config.run.items_per_step, config.run.seed)
        steps = range(config.run.steps)
        self._expected = {step: [item.id for item in order.of_step(step)] for step in steps}
        state = pickle.loads((run.checkpoint(config.run.steps) / "algorithm_state.pkl").read_bytes())
        self._learned = {step: [] for step in steps}
        for rollout, _ in state["cpo"]["replay"].entries:
            self._learned[rollout.step].append(rollout.item_id)

    def useful_time(self, since: int) -> float:
        """Time that the steps behind the first ``since`` would have taken undisturbed, as a share of what they took.

        As those did that were finished between ``since`` and the first fault.
        """
        first = dict(reversed(self._finished))  # first time that so many were finished
        before, end = self._faults[0][0], max(first)
        step_s = (first[before] - first[since]) / (before - since)
        return step_s * (end - since) / (first[end] - first[since])

    def _finish(self, algorithm: CPO) -> None:
        done = algorithm.finished_steps
        self.note(done)
        self._expected[done - 1] = [item.id for item in algorithm.order.of_step(done - 1)]
        if fault := self._due.pop(done, None):
            self.fault()
            fault(algorithm)

    def recovery_s(self) -> float | None:
        """From a fault until a step is finished whose rollouts were given out after it: the longest of all faults."""
        end = self._finished[-1][1]
        waits = [
            next((when for step, when in self._finished if step > done + STALENESS and when > at), end) - at
            for done, at in self._faults
        ]
        return max(waits, default=None)

    def check(
        self,
        schedule: str,
        config: TrainConfig,
        weights: Weights,
        *,
        steps: int | None = None,
        set_aside: int = 0,
        reference: Weights | None = None,
        useful: float | None = None,
    ) -> None:
        """Write the schedule's row, then see that nothing is lost or counted twice and the policy is the same.

        Args:
            steps: Training steps done; None: the whole run.
            set_aside: Items that must be missing.
            reference: What the policy must be; None: that of the same run alone.
        """
        steps = steps or config.run.steps
        assert not self._due, "a fault never happened"
        assert sorted(self._learned)[-steps:] == list(range(steps))
        counted = [(set(self._learned[step]), self._learned[step], self._expected[step]) for step in range(steps)]
        expected = self.alone.weights(config, steps) if reference is None else reference
        row = Row(
            schedule,
            faults=len(self._faults),
            recovery_s=self.recovery_s(),
            lost=sum(len(set(wanted) - found) for found, _, wanted in counted),
            twice=sum(len(ids) - len(found & set(wanted)) for found, ids, wanted in counted),
            difference=max(float((weights[name] - expected[name]).abs().max()) for name in expected),
            useful=useful,
        )
        self.rows.append(row)
        assert weights.keys() == expected.keys()
        assert row.lost == set_aside
        assert row.twice == 0
        assert row.difference <= 1e-6
