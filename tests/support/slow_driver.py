"""A training driver that waits after its third step, so that a test can kill it there."""

import sys
import time
from pathlib import Path

from cacovid.config import TrainConfig
from cluster.training.run import train
from cluster.training.run_directory import RunDirectory


def wait_at_third_step(row: dict[str, float]) -> None:
    if row["step"] == 2:
        time.sleep(600)


if __name__ == "__main__":
    config = TrainConfig.model_validate_json(sys.argv[2])
    train(config, RunDirectory.create(Path(sys.argv[1]), config), wait_at_third_step)
