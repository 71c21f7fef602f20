"""metrics.jsonl, TensorBoard and curve.png of a run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import matplotlib as mpl
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from cacovid.reporting.charts import trailing_mean
from cluster.training.run_directory import RunDirectory


class Listener(Protocol):
    """Hears of each step beside the run's files."""

    def add(self, row: Mapping[str, float]) -> None:
        """One training step's figures."""
        ...


class RunLog:
    """Appends each step's row to the run's files, and tells ``listeners`` of it."""

    def __init__(self, run: RunDirectory, first_step: int, listeners: Sequence[Listener] = ()) -> None:
        self._run = run
        self._listeners = listeners
        self._open(first_step)

    def _open(self, first_step: int) -> None:
        self._run.cut_metrics(first_step)
        self._file = self._run.metrics.open("a")
        self._board = SummaryWriter(str(self._run.tensorboard), purge_step=first_step)

    def rewind(self, step: int) -> None:
        """Drop the rows from ``step`` on, which will be done again."""
        self.close()
        self._open(step)

    def flush(self) -> None:
        """All events are in their file when this returns."""
        self._board.flush()

    def close(self) -> None:
        """Close both files."""
        self._file.close()
        self._board.close()

    def add(self, row: Mapping[str, float]) -> None:
        """One training step's figures; on disk when this returns."""
        self._file.write(json.dumps(dict(row)) + "\n")
        self._file.flush()
        for name, value in row.items():
            self._board.add_scalar(f"train/{name}", value, int(row["step"]))
        for listener in self._listeners:
            listener.add(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def draw_curve(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Rewards, loss and throughput over training steps, as a PNG; thick lines are trailing means."""
    mpl.use("Agg")
    steps = [row["step"] + 1 for row in rows]
    panels = [
        ("reward: the policy's own top k, and all sampled combinations", ("top_k_reward", "reward"), "mean reward"),
        ("loss per optimiser step (mean of the step's updates)", ("loss",), "loss"),
        ("throughput", ("combinations_per_second",), "combinations / s"),
    ]
    figure = Figure(figsize=(7, 7.5), layout="constrained")
    axes = figure.subplots(len(panels), 1, sharex=True)
    for axis, (title, names, unit) in zip(axes, panels, strict=True):
        for name in names:
            values = [row[name] for row in rows]
            (line,) = axis.plot(steps, values, linewidth=0.8, alpha=0.35)
            axis.plot(steps, trailing_mean(values), linewidth=2, color=line.get_color(), label=name.replace("_", " "))
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_ylabel(unit)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        if len(names) > 1:
            axis.legend(frameon=False)
    axes[-1].set_xlabel("training step")
    figure.savefig(path, dpi=140)
