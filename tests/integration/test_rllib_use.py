"""CPO from Python, as RLlib users expect it, and from Tune."""

from pathlib import Path

import pytest
import torch
from ray import tune

from cacovid.errors import UserError
from cluster.algorithm import CPO
from cluster.config import CPOConfig
from tests.integration.conftest import SMALL_RUN


def small_config(table: Path) -> CPOConfig:
    return CPOConfig().training(overrides={**SMALL_RUN, "data.train": str(table)})


def test_fluent_config_builds_and_trains(cluster: None, table: Path) -> None:
    algorithm = small_config(table).env_runners(num_env_runners=1).learners(num_learners=0).build_algo()
    try:
        before = algorithm.get_weights()["default_policy"]
        result = algorithm.train()
        assert result["cpo"]["questions"] == 4
        assert result["cpo"]["combinations"] == 32
        assert any(not torch.equal(before[name], value) for name, value in algorithm.get_weights()["default_policy"].items())
        assert algorithm.get_policy().metadata.trained_steps == 1
    finally:
        algorithm.stop()


def test_overrides_and_rllib_setters_fill_one_config() -> None:
    config = CPOConfig().training(overrides={"actors.count": 3, "optimizer.lr": 0.1}).learners(num_learners=4)
    resolved = config.train_config()
    assert (resolved.actors.count, resolved.learners.count, resolved.optimizer.lr) == (3, 4, 0.1)
    assert config.num_env_runners == 3


def test_unknown_override_names_the_field() -> None:
    with pytest.raises(UserError, match=r"optimizer\.rate: unknown field"):
        CPOConfig().training(overrides={"optimizer.rate": 1}).train_config()


@pytest.mark.slow
def test_tune_runs_a_grid(cluster: None, table: Path, tmp_path: Path) -> None:
    config = small_config(table).env_runners(num_env_runners=1).learners(num_learners=1)
    space = config.training(overrides={"optimizer.lr": tune.grid_search([1e-3, 5e-3])})
    results = tune.Tuner(
        CPO,
        param_space=space,
        run_config=tune.RunConfig(stop={"training_iteration": 2}, storage_path=str(tmp_path), verbose=0),
    ).fit()
    assert len(results) == 2
    assert not results.errors
    assert len({result.metrics["cpo"]["loss"] for result in results}) == 2
