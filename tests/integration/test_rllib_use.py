"""CPO from Python, as RLlib users expect it, and from Tune."""

from pathlib import Path

import pytest
import torch
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining

from cacovid.errors import UserError
from cluster.training.cpo import CPO, CPOConfig
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
        assert any(
            not torch.equal(before[name], value) for name, value in algorithm.get_weights()["default_policy"].items()
        )
        assert algorithm.get_policy().metadata.trained_steps == 1
    finally:
        algorithm.stop()


def test_algorithm_offers_what_rllib_users_expect(
    cluster: None, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluation, module, policy, checkpoints by a relative path, and a second algorithm from one of them."""
    monkeypatch.chdir(tmp_path)
    own = {"evaluation.data": str(table), "evaluation.clips": 2, "evaluation.retentions": (0.5, 0.1)}
    config = small_config(table).training(overrides=own, run_dir=str(tmp_path / "run"))
    config = config.env_runners(num_env_runners=1).learners(num_learners=0).evaluation(evaluation_interval=2)
    algorithm: CPO = config.build_algo()
    try:
        assert "evaluation" not in algorithm.train()
        measured = algorithm.train()["evaluation"]["cpo"]
        assert measured["questions"] == 4
        assert {"full_accuracy", "accuracy_0.5", "accuracy_0.1", "evidence_recall_0.1"} <= measured.keys()
        policy, module = algorithm.get_policy(), algorithm.get_module()
        assert policy.metadata.trained_steps == 2
        for weights in (module.policy.state_dict(), algorithm.get_weights()["default_policy"]):
            assert all(torch.equal(weights[name], value) for name, value in policy.state_dict().items())
        algorithm.save_to_path("checkpoint")
        third = algorithm.train()["cpo"]
        assert third["lost_actors"] == 0
    finally:
        algorithm.stop()
    restored: CPO = CPO.from_checkpoint(str(tmp_path / "checkpoint"))
    try:
        assert restored.iteration == 2
        assert restored.train()["cpo"]["loss"] == third["loss"]
    finally:
        restored.stop()


def test_loss_that_is_no_number_ends_the_run(cluster: None, table: Path, tmp_path: Path) -> None:
    config = small_config(table).training(overrides={"optimizer.lr": 1e30}, run_dir=str(tmp_path))
    algorithm: CPO = config.env_runners(num_env_runners=0).learners(num_learners=0).build_algo()
    try:
        with pytest.raises(UserError, match=r"lower optimizer\.lr than 1e\+30"):
            algorithm.train()
    finally:
        algorithm.stop()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (CPOConfig().training(lr=1e-4), r"lr=0\.0001 has no effect on CPO: use .*optimizer\.lr"),
        (CPOConfig().debugging(seed=3), r"seed=3 has no effect on CPO: use .*run\.seed"),
        (CPOConfig().environment("CartPole-v1"), r"env='CartPole-v1' has no effect on CPO: use .*data\.train"),
        (CPOConfig().evaluation(evaluation_num_env_runners=2), "the rollout actors evaluate"),
        (CPOConfig().training(overrides={"optimizer.lr": -1}), r"optimizer\.lr: .*greater than 0"),
    ],
)
def test_settings_that_cpo_lacks_are_refused(config: CPOConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        config.validate()


def test_overrides_and_rllib_setters_fill_one_config() -> None:
    config = CPOConfig().training(overrides={"actors.count": 3, "optimizer.lr": 0.1}).learners(num_learners=4)
    resolved = config.train_config()
    assert (resolved.actors.count, resolved.learners.count, resolved.optimizer.lr) == (3, 4, 0.1)
    assert config.num_env_runners == 3


def test_search_spaces_and_placement_go_together() -> None:
    """Tune resolves the space before the run is validated."""
    config = CPOConfig().training(overrides={"learners.count": 0, "optimizer.lr": tune.grid_search([1e-3, 5e-3])})
    assert config.num_learners == 0
    with pytest.raises(UserError, match=r"optimizer\.lr"):
        config.validate()


def test_unknown_override_names_the_field() -> None:
    with pytest.raises(UserError, match=r"optimizer\.rate: unknown field"):
        CPOConfig().training(overrides={"optimizer.rate": 1}).train_config()


@pytest.mark.slow
@pytest.mark.parametrize(
    "actors", [{"actors.count": 1}, {"actors.count": 0, "actors.max": 1}], ids=["fixed", "elastic"]
)
def test_tune_runs_a_grid(actors: dict[str, int], cluster: None, table: Path, tmp_path: Path) -> None:
    config = small_config(table).training(overrides=actors).learners(num_learners=1)
    space = config.training(overrides={"optimizer.lr": tune.grid_search([1e-3, 5e-3])})
    results = tune.Tuner(
        CPO,
        param_space=space,
        run_config=tune.RunConfig(stop={"training_iteration": 2}, storage_path=str(tmp_path), verbose=0),
    ).fit()
    assert len(results) == 2
    assert not results.errors
    assert len({result.metrics["cpo"]["loss"] for result in results}) == 2


@pytest.mark.slow
def test_population_based_training_hands_checkpoints_over(cluster: None, table: Path, tmp_path: Path) -> None:
    """The worse trial goes on from the better one's checkpoint, with a perturbed learning rate."""
    rates = tune.grid_search([1e-6, 5e-3])
    config = small_config(table).training(overrides={"run.steps": 8, "optimizer.lr": rates})
    scheduler = PopulationBasedTraining(
        time_attr="training_iteration",
        metric="cpo/loss",
        mode="min",
        perturbation_interval=2,
        synch=True,
        quantile_fraction=0.5,
        hyperparam_mutations={"overrides": {"optimizer.lr": tune.loguniform(1e-3, 1e-2)}},
    )
    results = tune.Tuner(
        CPO,
        param_space=config.env_runners(num_env_runners=1).learners(num_learners=0),
        tune_config=tune.TuneConfig(scheduler=scheduler),
        run_config=tune.RunConfig(
            stop={"training_iteration": 4},
            storage_path=str(tmp_path),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=2),
            verbose=0,
        ),
    ).fit()
    assert not results.errors
    assert [result.metrics["cpo"]["step"] for result in results] == [3, 3]
    assert all(result.config["overrides"]["optimizer.lr"] >= 1e-3 for result in results)
