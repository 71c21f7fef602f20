"""What goes to a run's store with one checkpoint, as it was when the checkpoint was saved.

The files of a parcel are hard links, or copies where training goes on writing into them: training may save, and delete,
what it likes while an upload reads them.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cluster.training.run_directory import BEST, RunDirectory

FOLDER = ".outgoing"
CHECKPOINT, ROWS = "checkpoint", "run"  # folders of a stored checkpoint: the checkpoint itself, the run's rows so far


@dataclass(frozen=True)
class Parcel:
    """A checkpoint on its way; it lies in ``folder`` until :meth:`drop`."""

    step: int
    folder: Path

    @classmethod
    def pack(cls, run: RunDirectory, step: int) -> Self:
        """The run as it is now, after ``step`` steps, with that checkpoint saved.

        Raises:
            OSError: The disk is full, or has no hard links.
        """
        parcel = cls(step, run.folder / FOLDER / f"step-{step:06d}")
        parcel.drop()
        shutil.copytree(run.checkpoint(step), parcel.folder / CHECKPOINT, copy_function=os.link)
        copies = parcel.folder / "copies"
        for folder in (run.policy, run.best_policy, run.initial_policy):  # whose files are replaced, not changed
            if folder.exists():
                shutil.copytree(folder, copies / folder.name, copy_function=os.link)
        for folder in (run.tensorboard, run.logs):
            if folder.exists():
                shutil.copytree(folder, copies / folder.name)
        for target, files in {
            parcel.folder / ROWS: (run.metrics, run.skipped, run.best),
            parcel.folder / ROWS / run.tracking.name: run.notes(),  # what goes on elsewhere goes on at its trackers
            copies: (run.metrics, run.skipped, run.curve),
            copies / run.checkpoints.name: (run.best,),
        }.items():
            target.mkdir(parents=True, exist_ok=True)
            for file in files:
                if file.exists():
                    shutil.copy(file, target)
        return parcel

    def checkpoint_files(self) -> dict[str, Path]:
        """What makes the checkpoint, by name in its folder of the store."""
        return {name: path for top in (CHECKPOINT, ROWS) for name, path in _files(self.folder, self.folder / top)}

    def copies(self) -> dict[str, Path]:
        """What lies beside the checkpoints, by name in the run's folder."""
        return dict(_files(self.folder / "copies", self.folder / "copies"))

    @property
    def best(self) -> Path:
        """Which checkpoint is the best, if any has been evaluated."""
        return self.folder / ROWS / BEST

    def drop(self) -> None:
        """Remove its files; the run's own stay."""
        shutil.rmtree(self.folder, ignore_errors=True)


def drop_all(run: RunDirectory) -> None:
    """Remove what an earlier process left on its way."""
    shutil.rmtree(run.folder / FOLDER, ignore_errors=True)


def unpack(folder: Path, run: RunDirectory, step: int, *, with_rows: bool) -> None:
    """Put the files of a stored checkpoint, in ``folder``, where ``run`` looks for them."""
    if with_rows:
        targets = {file.name: file for file in (run.metrics, run.skipped, run.best)}
        for name, path in _files(folder / ROWS, folder / ROWS):
            target = targets.get(name, run.folder / name)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    shutil.rmtree(run.checkpoint(step), ignore_errors=True)
    os.replace(folder / CHECKPOINT, run.checkpoint(step))


def _files(base: Path, folder: Path) -> list[tuple[str, Path]]:
    return [(path.relative_to(base).as_posix(), path) for path in sorted(folder.rglob("*")) if path.is_file()]
