"""``cacovid embedded``: the tiny Video-LLM and its clips."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

LINES = 20  # lines a stage where there is no terminal
app = typer.Typer(no_args_is_help=True, help="The embedded benchmark: its model and its clips.")

Output = Annotated[Path, typer.Option("--out", help="folder to write; must not hold one already")]


@app.command()
def build(
    out: Output,
    seed: Annotated[int, typer.Option(min=0, help="seed of initial weights and batches")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="torch threads")] = 2,
    workers: Annotated[int, typer.Option(min=1, help="processes that draw clips")] = 2,
) -> None:
    """Train the tiny Video-LLM from nothing (about 25 minutes on two cores) and print its held-out accuracy."""
    import torch
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from cacovid.embedded.build import build as build_model

    torch.set_num_threads(threads)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[metrics]}"))
    console = Console()
    with Progress(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal) as bar:
        report = build_model(out, seed, workers=workers, progress=_ProgressBar(bar))
    console.print(f"{report.held_out_questions} questions on {report.held_out_clips} held-out clips, all tokens:")
    console.print(f"  drawn frames   {report.accuracy_drawn:.1%}")
    console.print(f"  decoded MP4s   {report.accuracy_decoded:.1%}")
    console.print(f"seconds: {', '.join(f'{stage} {seconds:.0f}' for stage, seconds in report.seconds.items())}")
    console.print(f"model: {out}")


@app.command()
def clips(
    out: Output,
    split: Annotated[str, typer.Option(help="train, development, held-out or model")] = "train",
    count: Annotated[int, typer.Option(min=1, help="clips; two questions each")] = 100,
    first: Annotated[int, typer.Option(min=0, help="first clip of the split")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="threads that draw and encode")] = 2,
) -> None:
    """Write clips as H.264 MP4 files with their question table."""
    from rich.console import Console

    from cacovid.embedded.dataset import TABLE, write_dataset
    from cacovid.embedded.splits import split_seeds

    items = write_dataset(out, split_seeds(split, count, first), workers=workers)
    Console().print(f"{count} clips and {len(items)} questions: {out / TABLE}")


class _ProgressBar:
    """Shows training stages as bars."""

    def __init__(self, bar: "Bar") -> None:
        self._bar = bar
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total, metrics="")
        shown = " ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        self._bar.update(self._tasks[stage], completed=done, metrics=shown)
        if not self._bar.console.is_terminal and (done % max(1, total // LINES) == 0 or done == total):
            self._bar.console.print(f"{stage} {done}/{total}  {shown}", highlight=False, soft_wrap=True)
