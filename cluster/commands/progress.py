"""How far a command is: a live bar on a terminal, a line now and then elsewhere."""

import math
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

LINES = 20  # lines a stage where there is no terminal


class Progress:
    """One bar for each stage, each with its latest figures and the time left at the mean pace so far."""

    def __init__(self) -> None:
        self.console = Console()
        self._bars = Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),  # what the figures leave of the line
            TextColumn("{task.fields[figures]}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
            expand=True,
            speed_estimate_period=math.inf,  # a training step may last minutes
        )

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def wait(self, what: str) -> None:
        """Say what goes on until a stage reports; nobody knows how long. Without a terminal the first time alone."""
        if not self.console.is_terminal and not self._bars.tasks:
            self.console.print(what)
        self._forget_waiting()
        self._bars.add_task(what, total=None, figures="")

    def show(self, stage: str, done: int, total: int, figures: str = "") -> None:
        """``done`` of ``total`` parts of ``stage`` are finished. Stages come one after the other."""
        self._forget_waiting()
        if not self._bars.tasks or self._bars.tasks[-1].description != stage:
            self._bars.add_task(stage, total=total, figures="")
        task = self._bars.tasks[-1]
        self._bars.update(task.id, completed=done, figures=f"{done}/{total} {figures}")
        if not self.console.is_terminal and (done % max(1, total // LINES) == 0 or done == total):
            left = "" if task.time_remaining is None else f"left {task.time_remaining:.0f} s"
            parts = (f"{stage} {done}/{total}", figures, left)
            self.console.print("  ".join(part for part in parts if part), highlight=False, soft_wrap=True)

    def _forget_waiting(self) -> None:
        for task in self._bars.tasks:
            if task.total is None:
                self._bars.remove_task(task.id)
