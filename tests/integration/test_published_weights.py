"""Weights reach the actors as the learner holds them: in half the bytes where it trains in bfloat16."""

from pathlib import Path

import pytest
import torch

from cluster.training.cpo import CPO, CPOConfig
from tests.integration.conftest import SMALL_RUN

DTYPES = {"on": torch.bfloat16, "off": torch.float32}


@pytest.mark.parametrize("bf16", ["on", "off"])
def test_weights_go_out_in_the_learners_type_and_come_back_as_float32(
    bf16: str, cluster: None, table: Path, tmp_path: Path
) -> None:
    overrides = {**SMALL_RUN, "data.train": str(table), "learners.bf16": bf16}
    config = CPOConfig().training(overrides=overrides, run_dir=str(tmp_path / "run"))
    algorithm: CPO = config.env_runners(num_env_runners=1).learners(num_learners=0).build_algo()
    try:
        first = algorithm.train()["cpo"]
        weights, policy = algorithm.schedule.newest.value(), algorithm.get_policy()
        assert {value.dtype for value in weights.values()} == {DTYPES[bf16]}
        assert first["published_bytes"] == sum(value.nbytes for value in weights.values())
        assert 0 < first["publish_seconds"] < first["learn_seconds"]
        for held in (policy.state_dict(), algorithm.get_weights()["default_policy"]):
            assert {value.dtype for value in held.values()} == {torch.float32}
            assert all(torch.equal(value, weights[name].float()) for name, value in held.items())
        algorithm.save_to_path(str(tmp_path / "checkpoint"))
        second = algorithm.train()["cpo"]
    finally:
        algorithm.stop()
    restored: CPO = CPO.from_checkpoint(str(tmp_path / "checkpoint"))
    try:
        again = restored.train()["cpo"]
        assert (again["loss"], again["reward"]) == (second["loss"], second["reward"])
    finally:
        restored.stop()
