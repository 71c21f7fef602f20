"""Weights & Biases. What it has is noted in the run's folder, since a run that is offline cannot be asked."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import wandb

from cacovid.atomic import writing
from cacovid.config import TrainConfig
from cluster.training.run_directory import RunDirectory
from cluster.training.tracking.base import Row, TrackingFailed

EXIT_CODE = {"finished": 0, "stopped": 0, "failed": 1}


class WandbTracker:
    """See :class:`cluster.training.tracking.base.Tracker`."""

    def __init__(self, run: Any, note: Path, steps: int) -> None:  # noqa: ANN401 - wandb's own
        self._run = run
        self._note = note
        self._steps = steps  # that it has

    def add(self, rows: Sequence[Row]) -> None:
        """Hand the rows to wandb's own process, which sends them."""
        for row in rows:
            step = int(row["step"])
            if step >= self._steps:
                self._run.log(dict(row), step=step)
                self._steps = step + 1
                _write(self._note, self._run.id, self._steps)

    def keep(self, files: Sequence[Path]) -> None:
        """In the folder whose files wandb sends at the end."""
        for path in files:
            shutil.copy(path, self._run.dir)

    def close(self, ended: str) -> None:
        """Wait until all is sent or on disk."""
        self._run.finish(exit_code=EXIT_CODE[ended])


def open_tracker(run: RunDirectory, config: TrainConfig) -> WandbTracker:
    """The W&B run of ``run``, a new one unless its folder notes one."""
    run.tracking.mkdir(exist_ok=True)
    note = run.tracking / "wandb.json"
    known: dict[str, Any] = json.loads(note.read_text()) if note.exists() else {"id": uuid4().hex[:12], "steps": 0}
    try:
        there = wandb.init(
            project=config.run.tracking_project,
            name=run.name,
            id=known["id"],
            resume="allow",
            dir=str(run.tracking),
            mode=config.run.wandb_mode,
            config=config.by_name(),
            settings=wandb.Settings(console="off", silent=True),
        )
    except wandb.Error as error:
        raise TrackingFailed(str(error).strip().splitlines()[0]) from error
    there.config.update(config.by_name(), allow_val_change=True)  # places may have changed
    _write(note, known["id"], known["steps"])
    return WandbTracker(there, note, known["steps"])


def _write(note: Path, id: str, steps: int) -> None:
    with writing(note) as part:
        part.write_text(json.dumps({"id": id, "steps": steps}))
