"""`cacovid refit`: a fresh policy from kept answers, the same whoever learns it; the run stays as it is."""

import shutil
from pathlib import Path

import pytest

from actors.env_runner import RolloutEnvRunner
from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cacovid.errors import UserError
from cacovid.policy.base import CompressionPolicy
from cluster.commands import refit as command
from cluster.training.refit import refit
from cluster.training.run_directory import RunDirectory
from tests.integration.conftest import Trained


def test_a_fresh_policy_learns_from_kept_answers_alone(
    undisturbed: Trained, small_run: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RolloutEnvRunner, "_roll_out", None)  # whoever asks for an answer fails
    found = []
    for name, learners in (("one", 0), ("two", 1)):
        run = RunDirectory(Path(shutil.copytree(undisturbed.run.folder, tmp_path / name)))
        updates: list[int] = []
        config = with_overrides(small_run, {"learners.count": learners})
        folder = refit(run, config, 3, lambda done, loss, kept=updates: kept.append(done))
        assert updates == [1, 2, 3]
        found.append(CompressionPolicy.from_pretrained(folder).state_dict())
        assert run.newest_checkpoint() == run.checkpoint(4)
    before = CompressionPolicy.from_pretrained(undisturbed.run.initial_policy).state_dict()
    for name, weight in undisturbed.weights.items():
        assert (found[0][name] - found[1][name]).abs().max() <= 1e-6
        assert not found[0][name].equal(weight), "another policy than the run's"
        assert not found[0][name].equal(before[name]) or not weight.any()


def test_mistakes_are_told(undisturbed: Trained, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--set optimizer\.lr: a refit learns as its run did"):
        command.refit(undisturbed.run.folder, overrides=["optimizer.lr=1"])
    with pytest.raises(UserError, match="holds no run to resume"):
        command.refit(tmp_path)
    RunDirectory.create(tmp_path / "new", TrainConfig()).release()
    with pytest.raises(UserError, match="has no checkpoint yet: train it first"):
        command.refit(tmp_path / "new")
