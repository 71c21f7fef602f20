"""The second world's recipe end to end: its model, its five problem types, figures of each."""

from pathlib import Path

import pytest

from cacovid.config_files import load_config
from cluster.training.run_directory import RunDirectory
from tests.integration.conftest import run_training

RECIPE = Path(__file__).parents[2] / "configs" / "embedded-2.toml"
SMALL = ["run.steps=1", "run.items_per_step=5", "sampling.group=4", "data.train_clips=1", "evaluation.clips=1"]
HERE = ["actors.count=0", "learners.count=0", "objective.replay_batch=4", "objective.replay_updates=1"]


@pytest.mark.slow
def test_every_problem_type_is_trained_on_and_told_apart(cluster: None, tmp_path: Path) -> None:
    run_training(load_config(RECIPE, [*SMALL, *HERE]), tmp_path / "run")
    (row,) = RunDirectory(tmp_path / "run").rows()
    assert row["questions"] == 5
    for kind in ("order", "count", "where", "sign", "hours"):
        assert row[f"evaluation/{kind}_accuracy_1"] == 1
        assert 0 <= row[f"evaluation/{kind}_accuracy_0.05"] <= 1
