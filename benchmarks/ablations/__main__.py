"""``make ablations``: trains and measures what is not yet known of each variant and seed, then prints the table.

variants.toml -> runs -> a process each (work.py), some side by side -> figures/*.json -> ablations.md
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from benchmarks.ablations.side_by_side import Ended, Job, ended_like_ctrl_c, run_side_by_side
from benchmarks.ablations.summary import Summary, table
from benchmarks.ablations.variants import VARIANTS, Variant, chosen, read_variants, runs_of
from benchmarks.ablations.work import Work
from benchmarks.table import markdown, show
from cacovid.atomic import writing
from cacovid.config import EvaluationConfig
from cacovid.errors import UserError
from cluster.commands.progress import Progress
from cluster.commands.shared import names, output_folder, run_plainly

TABLE = "ablations.md"
WIDTH = 20  # of what a run printed last

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="folder of runs, figures and the table; what is there is not done again")],
    only: Annotated[str, typer.Option(help="comma-separated variants; all without it")] = "",
    seeds: Annotated[int, typer.Option(min=1, help="training seeds 0, 1, ... of each")] = 3,
    answers: Annotated[int, typer.Option(min=1, help="combinations scored in one run")] = 6_144,
    every: Annotated[int, typer.Option(min=1, help="answers between evaluations, by which the price is told")] = 1_024,
    clips: Annotated[int, typer.Option(min=1, help="development clips measured on, two questions each")] = 50,
    jobs: Annotated[int, typer.Option(min=1, help="runs side by side, one thread each")] = 1,
    variants: Annotated[Path, typer.Option(help="TOML file of the variants")] = VARIANTS,
) -> None:
    """Train every variant for the same number of answers; print and write one table. Again: it goes on."""
    known = read_variants(variants)
    wanted = chosen(known, names(only))
    works = [
        Work(out=out, run=run, seed=seed, answers=answers, every=every, clips=clips)
        for seed in range(seeds)  # first all variants once
        for run in runs_of(known)
    ]
    root = works[0].root  # of all
    output_folder(root, overwrite=True)
    try:
        with ended_like_ctrl_c():  # else the processes of the runs would go on without us
            failed = _do([asked for work in works if (asked := work.only(wanted)).run.variants], jobs)
    except KeyboardInterrupt:
        typer.echo("interrupted: the same command goes on", err=True)
        raise typer.Exit(130) from None
    _tell(known, wanted, works, root / TABLE)
    if failed:
        raise UserError(f"{len(failed)} of the runs failed: {'; '.join(failed)}")


def _do(works: Sequence[Work], jobs: int) -> list[str]:
    """Train and measure what is missing; what failed and where it says why."""
    left = [_job(work) for work in works if work.missing()]
    ended: list[Ended] = []
    with Progress() as progress:
        done = len(works) - len(left)
        progress.show("runs", done, len(works))

        def tell(one: Ended) -> None:
            ended.append(one)
            how = "done" if one.code == 0 else "failed"
            progress.show("runs", done + len(ended), len(works), f"{one.job.name} {how} in {one.seconds:.0f} s")

        def look(running: Sequence[Job]) -> None:
            if progress.console.is_terminal and running:  # elsewhere each look would be a line
                figures = "  ".join(f"{each.name} {each.last_line()[:WIDTH]}" for each in running)
                progress.show("runs", done + len(ended), len(works), escape(figures))

        run_side_by_side(left, jobs, tell, look)
    return [f"{each.job.name}: {each.job.last_line()} ({each.job.log})" for each in ended if each.code]


def _job(work: Work) -> Job:
    command = [sys.executable, "-m", "benchmarks.ablations.work", work.model_dump_json()]
    return Job(work.name, command, work.root / "logs" / f"{work.name}.log")


def _tell(known: Sequence[Variant], wanted: Sequence[Variant], works: Sequence[Work], path: Path) -> None:
    """Print and write the table: what was asked for, and what else has figures."""
    summaries = []
    for variant in known:
        of = [work for work in works if variant in work.run.variants]
        figures = [found for work in of if (found := work.figures(variant)) is not None]
        if figures or variant in wanted:
            summaries.append(Summary(variant, of[0].run.owner.name, figures))
    heads, rows = table(summaries, EvaluationConfig())
    show("Ablations: accuracy in % of all tokens', mean and standard deviation of the seeds", heads, rows)
    with writing(path) as part:
        part.write_text(markdown(heads, rows))
    typer.echo(f"wrote {path}")


if __name__ == "__main__":
    run_plainly(app)
