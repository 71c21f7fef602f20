"""One Ray cluster, one set of embedded clips and one undisturbed run for all integration tests."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import ray
from torch import Tensor

from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cacovid.embedded.dataset import TABLE, write_dataset
from cacovid.embedded.splits import split_seeds
from cacovid.policy.base import CompressionPolicy
from cluster.training.run import TrainingOutcome, train
from cluster.training.run_directory import RunDirectory

SMALL_RUN = {
    "run.steps": 4,
    "run.items_per_step": 4,
    "run.checkpoint_every": 2,
    "sampling.group": 8,
    "objective.replay_batch": 6,
    "objective.replay_updates": 2,
    "actors.items_per_task": 1,
}


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A local Ray cluster with room for every test's actors and learners."""
    ray.init(
        address="local",
        num_cpus=8,
        object_store_memory=512 << 20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions on twelve embedded training clips."""
    folder = tmp_path_factory.mktemp("clips")
    write_dataset(folder, split_seeds("train", 12))
    return folder / TABLE


@pytest.fixture(scope="session")
def small_run(table: Path) -> TrainConfig:
    """Four training steps of the embedded default in miniature, without Ray processes."""
    overrides = {**SMALL_RUN, "data.train": str(table), "actors.count": 0, "learners.count": 0}
    return with_overrides(TrainConfig(), overrides)


class Trained(NamedTuple):
    """A finished run with what its tests look at."""

    outcome: TrainingOutcome
    run: RunDirectory
    weights: dict[str, Tensor]
    losses: list[float]


def run_training(config: TrainConfig, folder: Path, **kwargs: object) -> Trained:
    """Train in ``folder`` on the shared cluster."""
    run = RunDirectory.create(folder, config)
    outcome = train(config, run, lambda row: None, **kwargs)
    return finished(outcome, run)


def finished(outcome: TrainingOutcome, run: RunDirectory) -> Trained:
    run.release()
    weights = CompressionPolicy.from_pretrained(run.policy).state_dict()
    return Trained(outcome, run, weights, [row["loss"] for row in run.rows()])


@pytest.fixture(scope="session")
def undisturbed(small_run: TrainConfig, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The small run in the driver alone: what every other placement must equal."""
    return run_training(small_run, tmp_path_factory.mktemp("undisturbed") / "run")
