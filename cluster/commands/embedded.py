"""``cacovid embedded``: the tiny Video-LLM and its clips."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.progress import Progress

Show = Callable[[str, int, int, Mapping[str, float]], None]
app = typer.Typer(no_args_is_help=True, help="The embedded benchmark: its model and its clips.")

World = Annotated[int, typer.Option(min=1, max=2, help="1, or 2: longer clips, five problem types")]
Output = Annotated[Path, typer.Option("--out", help="folder to write; must not hold one already")]


@app.command()
def build(
    out: Output,
    seed: Annotated[int, typer.Option(min=0, help="seed of initial weights and batches")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="torch threads")] = 2,
    workers: Annotated[int, typer.Option(min=1, help="processes that draw clips")] = 2,
    world: World = 1,
) -> None:
    """Train a world's tiny Video-LLM (world 1: 25 minutes, world 2: 50) and print its held-out accuracy."""
    import torch

    from cacovid.cpu_memory import keep_freed_memory

    torch.set_num_threads(threads)
    keep_freed_memory()

    def show(stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
        progress.show(stage, done, total, " ".join(f"{name} {value:.3f}" for name, value in metrics.items()))

    with Progress() as progress:
        lines, seconds = (_build_first if world == 1 else _build_second)(out, seed, workers, show)
    for line in lines:
        progress.console.print(line)
    progress.console.print(f"seconds: {', '.join(f'{stage} {spent:.0f}' for stage, spent in seconds.items())}")
    progress.console.print(f"model: {out}")


def _build_first(out: Path, seed: int, workers: int, show: Show) -> tuple[list[str], dict[str, float]]:
    from cacovid.embedded.build import build as build_model

    report = build_model(out, seed, workers=workers, progress=show)
    lines = [
        f"{report.held_out_questions} questions on {report.held_out_clips} held-out clips, all tokens:",
        f"  drawn frames   {report.accuracy_drawn:.1%}",
        f"  decoded MP4s   {report.accuracy_decoded:.1%}",
    ]
    return lines, report.seconds


def _build_second(out: Path, seed: int, workers: int, show: Show) -> tuple[list[str], dict[str, float]]:
    from cacovid.embedded.second.build import build_second

    report = build_second(out, seed, workers=workers, progress=show)
    lines = [
        f"mean reward on {report.held_out_scenes} held-out scenes, all tokens, drawn frames / decoded MP4s:",
        *(f"  {kind:<6} {value:.1%} / {report.decoded[kind]:.1%}" for kind, value in report.drawn.items()),
    ]
    return lines, report.seconds


@app.command()
def clips(
    out: Output,
    split: Annotated[str, typer.Option(help="train, development, held-out or model")] = "train",
    count: Annotated[int, typer.Option(min=1, help="clips; two questions each, in world 2 five")] = 100,
    first: Annotated[int, typer.Option(min=0, help="first clip of the split")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="threads that draw and encode")] = 2,
    world: World = 1,
) -> None:
    """Write clips as H.264 MP4 files with their question table."""
    from rich.console import Console

    from cacovid.embedded.dataset import TABLE, WORLDS, write_dataset
    from cacovid.embedded.splits import split_seeds

    items = write_dataset(out, split_seeds(split, count, first), world=[*WORLDS][world - 1], workers=workers)
    Console().print(f"{count} clips and {len(items)} questions: {out / TABLE}")
