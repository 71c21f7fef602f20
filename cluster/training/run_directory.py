"""The folder of one run: what is in it, who may write it, which checkpoint is the newest.

DIR/config.toml           the resolved configuration
DIR/initial_policy/       the policy that training started from
DIR/policy/               the newest policy (``CompressionPolicy.from_pretrained``)
DIR/checkpoints/step-N/   everything a resumed run needs
DIR/checkpoints/best.json the checkpoint that evaluates best (``evaluation.every``)
DIR/best_policy/          its policy
DIR/refit/                the policy of `cacovid refit`
DIR/metrics.jsonl         one row per training step
DIR/tensorboard/          the same figures as TensorBoard events
DIR/curve.png             reward and loss over the run
DIR/logs/attempt-N.log    what the Nth start of the run did, said and ended with
DIR/tracking/             which runs of MLflow and Weights & Biases this is
DIR/status.json           where the run stands (:mod:`cluster.training.run_status`)
DIR/mlflow.db, ...        MLflow's own, without run.mlflow_uri
DIR/skipped.jsonl         items set aside, with the reason
DIR/clips-*/, DIR/cache/  drawn clips and the embedding cache
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self

from cacovid.atomic import writing
from cacovid.config import TrainConfig
from cacovid.config_files import load_config, to_toml
from cacovid.errors import UserError
from cluster.training.same_run import check_same_run

LOCK = ".lock"
BEST = "best.json"
MOST_ASIDE = 100  # earlier runs of one name


class RunDirectory:
    """A run's folder, locked for as long as this process holds it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.address = str(folder)  # for --out and --resume
        self.policy = folder / "policy"
        self.best_policy = folder / "best_policy"
        self.refit = folder / "refit"
        self.initial_policy = folder / "initial_policy"
        self.checkpoints = folder / "checkpoints"
        self.best = self.checkpoints / BEST
        self.metrics = folder / "metrics.jsonl"
        self.tensorboard = folder / "tensorboard"
        self.curve = folder / "curve.png"
        self.status = folder / "status.json"
        self.skipped = folder / "skipped.jsonl"
        self.logs = folder / "logs"
        self.tracking = folder / "tracking"
        self.config_file = folder / "config.toml"
        self._lock: IO[str] | None = None

    @property
    def name(self) -> str:
        """How logs, metrics and trackers call the run."""
        return self.address.rpartition("/")[2] if "://" in self.address else self.folder.absolute().name

    @classmethod
    def create(cls, folder: Path, config: TrainConfig) -> Self:
        """A new run in ``folder``, which must hold nothing but a run that ended before its first step.

        Raises:
            UserError: The folder holds something else, is being written, or cannot be made.
        """
        run = cls(folder)
        if folder.exists() and (not folder.is_dir() or not run._is_unused()):
            raise UserError(
                f"output directory {folder} is in use: choose another with --out, or continue it with --resume {folder}"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
            run.hold()
            run.skipped.unlink(missing_ok=True)
            run.write_config(config)
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}") from error
        return run

    @classmethod
    def open(cls, folder: Path, config: TrainConfig) -> Self:
        """The run of ``config`` in ``folder``: begun, or continued where one is there that learns the same.

        Raises:
            UserError: The folder holds something else or another run, is being written, or cannot be made.
        """
        run = cls(folder)
        if not run.config_file.exists() or run._is_unused():
            return cls.create(folder, config)
        run, saved = cls.resume(folder)
        check_same_run(saved, config, folder)
        run.write_config(config)
        return run

    @classmethod
    def set_aside(cls, folder: Path) -> Path | None:
        """Move what is in ``folder`` to a name beside it that is free, and return that; None if there is nothing.

        Raises:
            UserError: A process is still writing the run, or it cannot be moved.
        """
        run = cls(folder)
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return None
        if not run.config_file.exists():
            raise UserError(f"{folder} holds no run to set aside: choose another with --out")
        try:
            run.hold()
            aside = folder.with_name(free_name(folder.name, lambda name: folder.with_name(name).exists()))
            folder.rename(aside)
        except OSError as error:
            raise UserError(f"cannot move {folder}: {error.strerror}") from error
        finally:
            run.release()
        return aside

    def write_config(self, config: TrainConfig) -> None:
        """Say what the run is."""
        with writing(self.config_file) as part:
            part.write_text(to_toml(config))

    def _is_unused(self) -> bool:
        """Nothing in it, or a run that a mistake (say, in data.train) ended before it learned anything."""
        is_run = self.config_file.exists() and (self.folder / LOCK).exists()  # not just somebody's config.toml
        ended_early = is_run and not self.rows() and self.newest_checkpoint() is None
        return ended_early or all(path.name == LOCK for path in self.folder.iterdir())

    @classmethod
    def resume(cls, folder: Path) -> tuple[Self, TrainConfig]:
        """An earlier run and its configuration.

        Raises:
            UserError: There is no run in ``folder``, or a process is still writing it.
        """
        run = cls(folder)
        if not run.config_file.exists():
            raise UserError(f"{folder} holds no run to resume (no config.toml): start one with --out")
        try:
            run.hold()
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}") from error
        return run, load_config(run.config_file)

    def hold(self) -> None:
        """Lock the folder. Raises UserError where another process holds it."""
        self._lock = (self.folder / LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{self.folder} is being written by another run: wait for it or choose another") from error

    def is_held(self) -> bool:
        """Whether a process writes the run now.

        Raises:
            OSError: The folder cannot be read.
        """
        if not (self.folder / LOCK).exists():
            return False
        with (self.folder / LOCK).open() as lock:  # a lock of our own, for a moment, that others may share
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def release(self) -> None:
        """Let others write the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def checkpoint(self, step: int) -> Path:
        """Where the checkpoint after ``step`` training steps lies."""
        return self.checkpoints / f"step-{step:06d}"

    def newest_checkpoint(self) -> Path | None:
        """The newest finished checkpoint (unfinished ones end in ``.part``)."""
        found = sorted(path for path in self.checkpoints.glob("step-*") if path.suffix != ".part")
        return found[-1] if found else None

    def is_complete(self, steps: int) -> bool:
        """Whether all of ``steps`` training steps are saved: the newest finished checkpoint is that after the last."""
        return self.newest_checkpoint() == self.checkpoint(steps)

    def commit_checkpoint(self, step: int, keep: int, best: int | None = None) -> Path:
        """Make the written ``.part`` folder the checkpoint of ``step``; only the newest ``keep`` and ``best`` stay."""
        final = self.checkpoint(step)
        if final.exists():
            shutil.rmtree(final)
        os.replace(self.part(step), final)
        for old in sorted(path for path in self.checkpoints.glob("step-*") if path.suffix != ".part")[:-keep]:
            if best is None or old != self.checkpoint(best):
                shutil.rmtree(old)
        return final

    def clear_parts(self) -> None:
        """Remove checkpoints that a killed or failed run left unfinished."""
        for part in self.checkpoints.glob("step-*.part"):
            shutil.rmtree(part)

    def part(self, step: int) -> Path:
        """Where the checkpoint of ``step`` is written before it counts."""
        return self.checkpoints / f"step-{step:06d}.part"

    def attempts(self) -> dict[int, Path]:
        """The log of each attempt, by its number."""
        return {int(path.stem.rpartition("-")[2]): path for path in self.logs.glob("attempt-[0-9]*.log")}

    def notes(self) -> list[Path]:
        """Which runs of its trackers this one is."""
        return sorted(self.tracking.glob("*.json"))

    def rows(self) -> list[dict[str, Any]]:
        """All rows of ``metrics.jsonl``; a last line cut off by a crash is left out."""
        if not self.metrics.exists():
            return []
        lines = self.metrics.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def cut_metrics(self, steps: int) -> None:
        """Drop rows of training steps from ``steps`` on, which a resumed run will do again."""
        kept = [row for row in self.rows() if row["step"] < steps]
        with writing(self.metrics) as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in kept))


def free_name(name: str, is_taken: Callable[[str], bool]) -> str:
    """``NAME.old``, or the first of ``NAME.old-2``, ``NAME.old-3``, ... that is not taken.

    Raises:
        UserError: There are too many.
    """
    names = [f"{name}.old", *(f"{name}.old-{number}" for number in range(2, MOST_ASIDE + 1))]
    free = next((each for each in names if not is_taken(each)), None)
    if free is None:
        raise UserError(f"{names[0]} to {names[-1]} are all taken: remove earlier runs")
    return free
