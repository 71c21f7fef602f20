"""The trackers of a run (``run.tracking``): each gets every step's row, once, whatever happens to the run."""

import logging
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeAlias

from cacovid.config import RunConfig, TrainConfig
from cacovid.errors import UserError
from cluster.training.run_directory import RunDirectory

logger = logging.getLogger(__name__)
Row: TypeAlias = Mapping[str, float]
PACKAGES = {"mlflow": ("mlflow", "sqlalchemy"), "wandb": ("wandb",)}


class TrackingFailed(Exception):
    """The tracker could not be told."""


class Tracker(Protocol):
    """One run at a tracker's. A run that goes on goes on there too.

    Its module has ``open_tracker(run, config)``, which raises :class:`TrackingFailed` as all of this does.
    """

    def add(self, rows: Sequence[Row]) -> None:
        """Rows of steps in order; those that it has already are left out."""
        ...

    def keep(self, files: Sequence[Path]) -> None:
        """Files of the finished run."""
        ...

    def close(self, ended: str) -> None:
        """This attempt ended as ``finished``, ``stopped`` (it may go on) or ``failed``."""
        ...


def check_tracking(config: RunConfig) -> None:
    """See that the packages of ``run.tracking`` are there.

    Raises:
        UserError: One is not.
    """
    for name in config.tracking:
        for package in PACKAGES[name]:
            if find_spec(package) is None:
                raise UserError(
                    f"run.tracking has {name!r}, but the package {package} is not installed: "
                    f"pip install 'cacovid[{name}]', or leave {name!r} out"
                )


class Trackers:
    """All trackers of a run, told of each step inside the block.

    Training does not end because a tracker cannot be reached: there is a warning, and the row is sent again with
    the next one. Those of earlier steps are sent at the start where the tracker lacks them.
    """

    def __init__(self, run: RunDirectory, config: TrainConfig) -> None:
        self._run = run
        self._steps = config.run.steps
        self._trackers: dict[str, Tracker] = {}
        self._waiting: dict[str, list[Row]] = {}  # rows, by tracker
        self._done = 0  # steps
        for name in config.run.tracking:
            try:
                self._trackers[name] = import_module(f"cluster.training.tracking.{name}").open_tracker(run, config)
            except TrackingFailed as error:
                raise UserError(f"{name} cannot be told of the run ({error}): mend it, or leave it out") from error

    def begin(self, rows: Sequence[Row]) -> None:
        """Training goes on behind these rows."""
        self._done = len(rows)
        self._waiting = {name: list(rows) for name in self._trackers}

    def add(self, row: Row) -> None:
        """A step is done."""
        self._done = int(row["step"]) + 1
        for name in self._trackers:
            self._waiting[name].append(row)
            self._send(name)

    def _send(self, name: str) -> None:
        try:
            self._trackers[name].add(self._waiting[name])
            self._waiting[name].clear()
        except TrackingFailed as error:
            logger.warning(
                "%s was not told of %d steps, they are sent again with the next: %s",
                name,
                len(self._waiting[name]),
                error,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = "failed" if error is not None else "finished" if self._done >= self._steps else "stopped"
        files = [self._run.curve, self._run.policy / "policy.json", self._run.config_file]
        for name, tracker in self._trackers.items():
            try:
                tracker.add(self._waiting.get(name, []))
                if ended == "finished":
                    tracker.keep([path for path in files if path.exists()])
                tracker.close(ended)
            except TrackingFailed as failure:
                logger.warning("%s was not told how the run ended: %s", name, failure)
