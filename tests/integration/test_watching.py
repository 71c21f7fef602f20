"""What is left of a run that went on after an error: the logs of both attempts, each step once at every tracker."""

import json
import re
from collections.abc import Mapping
from typing import NamedTuple

import pytest
import wandb
from mlflow import MlflowClient

from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cluster.training.run import train
from cluster.training.run_directory import RunDirectory
from tests.support.wandb_files import records

pytestmark = pytest.mark.slow  # two trackers in processes of their own


class Watched(NamedTuple):
    """A run of four steps in two attempts, and what it was configured to be."""

    run: RunDirectory
    config: TrainConfig


@pytest.fixture(scope="module")
def watched(small_run: TrainConfig, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Watched:
    """Step 3 is done twice: an error ends the first attempt behind it, and the checkpoint is that of step 2."""
    config = with_overrides(small_run, {"run.tracking": ["mlflow", "wandb"], "run.wandb_mode": "offline"})
    folder = tmp_path_factory.mktemp("watched") / "fruit"

    def fail(row: Mapping[str, float]) -> None:
        if row["step"] == 2:
            raise RuntimeError("the lamp fell over")

    run = RunDirectory.create(folder, config)
    with pytest.raises(RuntimeError, match="lamp"):
        train(config, run, fail)
    run.release()
    run, config = RunDirectory.resume(folder)
    train(config, run, lambda row: None)
    run.release()
    return Watched(run, config)


def test_each_attempt_has_its_log(watched: Watched) -> None:
    first, second = (path.read_text() for path in sorted(watched.run.logs.iterdir()))
    versions = r"cacovid \S+ (commit \w{40}( \+ changes)?|no commit) ray \S+ torch \S+ host \S+ config \w{12}$"
    for attempt, text in ((1, first), (2, second)):
        assert re.search(rf"^\S+ \S+ INFO run: run=fruit attempt={attempt} {versions}", text, re.MULTILINE)
    line = (
        r" INFO run: run=fruit attempt=%d step=3/4 reward=\S+ top_k_reward=\S+ loss=\S+ combinations/s=\S+ actors=0/0 "
    )
    assert re.search(line % 1, first)
    assert re.search(line % 2, second)
    assert "ERROR run: run=fruit attempt=1 ended by RuntimeError: the lamp fell over" in first
    assert "Traceback" in first
    assert second.endswith("attempt=2 ended after step 4 of 4\n")


def test_mlflow_has_one_run_with_each_step_once(watched: Watched) -> None:
    client = MlflowClient(f"sqlite:///{watched.run.folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("cacovid")
    (there,) = client.search_runs([experiment.experiment_id])
    assert (there.info.run_name, there.info.status) == ("fruit", "FINISHED")
    rows = watched.run.rows()
    for name in ("loss", "reward", "replay_bytes"):
        history = sorted((each.step, each.value) for each in client.get_metric_history(there.info.run_id, name))
        assert history == [(row["step"], row[name]) for row in rows]
    fields = {f"{section}.{name}": str(value) for section, each in watched.config for name, value in each}
    assert there.data.params == fields
    files = {each.path for each in client.list_artifacts(there.info.run_id)}
    assert files == {"curve.png", "policy.json", "config.toml"}


def test_wandb_has_one_run_with_each_step_once(watched: Watched) -> None:
    found = records(watched.run.tracking)
    assert {each.run.run_id for each in found if each.run.run_id} == {
        json.loads((watched.run.tracking / "wandb.json").read_text())["id"]
    }
    history = [
        {item.key or item.nested_key[0]: json.loads(item.value_json) for item in each.history.item}
        for each in found
        if each.history.item
    ]
    assert [(int(each["step"]), each["loss"]) for each in history] == [
        (row["step"], row["loss"]) for row in watched.run.rows()
    ]
    newest = max(watched.run.tracking.glob("wandb/offline-run-*"))
    assert {path.name for path in (newest / "files").iterdir()} >= {"curve.png", "policy.json", "config.toml"}
    assert wandb.run is None
