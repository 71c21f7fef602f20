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
from cluster.training.stores.address import StoreAddress
from cluster.training.stores.opening import open_stored
from cluster.training.stores.parcel import Parcel
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


def test_a_run_in_a_store_is_refitted_on_a_machine_that_has_nothing_of_it(
    undisturbed: Trained, small_run: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"file://{tmp_path}/store/run"
    address = StoreAddress.parse(uri)
    assert address is not None
    trained = open_stored(address, tmp_path / "trained", with_overrides(small_run, {"actors.count": 0}))
    assert trained.run is not None
    shutil.copytree(undisturbed.run.folder, trained.run.folder, dirs_exist_ok=True)
    trained.store.publish(Parcel.pack(trained.run, 4), keep=2)
    command.refit(uri, updates=2, overrides=["learners.count=0"], work=tmp_path / "here")
    assert f"{uri}/refit" in capsys.readouterr().out
    policy = CompressionPolicy.from_pretrained(tmp_path / "store" / "run" / "refit")
    assert policy.state_dict().keys() == undisturbed.weights.keys()
    trained.store.owner.check()  # its own attempt is still the newest
    assert len(trained.store.counting()) == 1


def test_mistakes_are_told(undisturbed: Trained, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--set optimizer\.lr: a refit learns as its run did"):
        command.refit(str(undisturbed.run.folder), overrides=["optimizer.lr=1"])
    with pytest.raises(UserError, match="holds no run to resume"):
        command.refit(str(tmp_path))
    with pytest.raises(UserError, match=r"--work .* goes with a store, but .* is a folder"):
        command.refit(str(tmp_path), work=tmp_path / "work")
    with pytest.raises(UserError, match=r"file://.* holds no run \(no config.toml\)"):
        command.refit(f"file://{tmp_path}/none", work=tmp_path / "work")
    RunDirectory.create(tmp_path / "new", TrainConfig()).release()
    with pytest.raises(UserError, match="has no checkpoint yet: train it first"):
        command.refit(str(tmp_path / "new"))
