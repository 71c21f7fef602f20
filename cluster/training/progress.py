"""Progress of a training run: a live bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

LINES = 20  # lines over a whole run where there is no terminal
BAR_WIDTH = 8  # leaves room for all figures on 80 columns
STARTING = "starting rollout actors and learners"


class TrainingProgress:
    """Shows reward, loss, throughput and the time left."""

    def __init__(self, total_steps: int) -> None:
        self.total = total_steps
        self.console = Console()
        self._started = time.perf_counter()
        self._first: int | None = None
        self._bar = Progress(
            SpinnerColumn("line"),
            BarColumn(BAR_WIDTH),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._bar.add_task(STARTING, total=total_steps)

    def __enter__(self) -> Self:
        self._bar.start()
        if not self.console.is_terminal:
            self.console.print(STARTING)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def report(self, row: dict[str, float]) -> None:
        """One finished training step."""
        done = int(row["step"]) + 1
        throughput = f"{row['combinations_per_second']:.0f} combinations/s"
        figures = f"reward {row['top_k_reward']:.3f}  loss {row['loss']:.3f}  {throughput}"
        self._bar.update(self._task, completed=done, description=figures)
        if self._first is None:
            self._first, self._started = done, time.perf_counter()
        if not self.console.is_terminal and (done % max(1, self.total // LINES) == 0 or done == self.total):
            self.console.print(f"step {done}/{self.total}  {figures}{self._left(done)}", highlight=False)

    def _left(self, done: int) -> str:
        """Seconds to the end at the mean pace so far; nothing before there is a pace."""
        assert self._first is not None
        paced = done - self._first
        if not paced:
            return ""
        return f"  left {(time.perf_counter() - self._started) / paced * (self.total - done):.0f} s"
