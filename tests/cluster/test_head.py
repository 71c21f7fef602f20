"""The head node goes, with the GCS and the driver on it: the same command on a new cluster ends the run."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from cacovid.config import TrainConfig
from cacovid.config_files import to_toml, with_overrides
from cacovid.policy.base import CompressionPolicy
from cluster.training.run_directory import RunDirectory
from tests.support.disturbed import Disturbed, cacovid_train
from tests.support.head_node import WITHOUT_TOKEN, head_node
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.shows("One restartable command: head, GCS and driver killed together")]

RUN_S = 250.0


def test_head_and_driver_killed_together(small: TrainConfig, disturbed: Disturbed, tmp_path: Path) -> None:
    """Nothing of the first cluster is left but the run's folder."""
    config = with_overrides(small, {"run.steps": 10, "actors.count": 1})
    (tmp_path / "config.toml").write_text(to_toml(config))
    run = RunDirectory(tmp_path / "run")
    command = ("--config", str(tmp_path / "config.toml"), "--out", str(run.folder))
    with head_node(tmp_path, WITHOUT_TOKEN, include_dashboard=False) as (head, address):
        driver = cacovid_train(address, *command)
        try:
            wait_until(lambda: len(run.rows()) >= 3 or driver.poll() is not None, RUN_S)
            disturbed.note(len(run.rows()))
        finally:
            processes = [*head.children(recursive=True), head]
            os.killpg(driver.pid, signal.SIGKILL)
            for process in processes:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            driver.wait()
        disturbed.fault()
    rows = len(run.rows())
    assert 3 <= rows < config.run.steps
    (tmp_path / "new").mkdir()
    with head_node(tmp_path / "new", WITHOUT_TOKEN, include_dashboard=False) as (_, address):
        driver = cacovid_train(address, *command)
        wait_until(lambda: len(run.rows()) >= rows + 2 or driver.poll() is not None, RUN_S)
        disturbed.note(len(run.rows()))
        assert driver.wait(RUN_S) == 0
    disturbed.read(run, config)
    weights = CompressionPolicy.from_pretrained(run.policy).state_dict()
    disturbed.check("`kill -9` of head, GCS and driver; the same command on a new cluster", config, weights)
