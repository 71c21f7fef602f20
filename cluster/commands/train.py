"""``cacovid train``."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cacovid.errors import UserError
from cluster.commands.progress import Progress
from cluster.commands.shared import ConfigFile, Overrides

if TYPE_CHECKING:
    from cluster.training.run import TrainingOutcome


def train(
    config: ConfigFile = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="folder of the new run")] = None,
    resume: Annotated[Path | None, typer.Option(help="folder of a run to continue from its newest checkpoint")] = None,
    address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="Ray cluster, e.g. auto or host:6379; starts one here if not given"),
    ] = None,
) -> None:
    """Train a compression policy. Ctrl-C ends the run with a checkpoint; --resume continues it exactly."""
    if (out is None) == (resume is None):
        raise UserError("give either --out DIR for a new run or --resume DIR for an earlier one")
    if resume is not None and (config is not None or overrides):
        raise UserError(
            f"--resume continues with the run's own configuration: leave out --config and --set (where it runs, say "
            f"actors.count, may be changed in {resume / 'config.toml'})"
        )
    from cacovid.config_files import load_config
    from cluster.training.run_directory import RunDirectory

    if resume is not None:
        run, resolved = RunDirectory.resume(resume)
        if run.is_complete(resolved.run.steps):
            _name_files(resume)
            typer.echo(f"all {resolved.run.steps} steps are done; for more raise run.steps in {run.config_file}")
            return
    else:
        assert out is not None
        resolved = load_config(config, overrides or [])
        run = RunDirectory.create(out, resolved)
    from cluster.training.run import train as run_training

    try:
        with Progress() as progress:
            progress.wait("starting rollout actors and learners")
            report = partial(_show, progress, resolved.run.steps)
            outcome = run_training(
                resolved, run, report, resume=resume is not None, address=address, tell=progress.wait
            )
    except KeyboardInterrupt:
        typer.echo(f"ended at once; go on from the newest checkpoint with --resume {run.folder}", err=True)
        raise typer.Exit(130) from None
    run.release()
    _say(outcome)
    if outcome.interrupted:
        raise typer.Exit(130)


def _show(progress: Progress, steps: int, row: Mapping[str, float]) -> None:
    """One finished step, in figures that fit a line of 80 columns."""
    figures = f"reward {row['top_k_reward']:.3f}  loss {row['loss']:.3f}"
    throughput = f"{row['combinations_per_second']:.0f} combinations/s"
    progress.show("step", int(row["step"]) + 1, steps, f"{figures}  {throughput}")


def _say(outcome: "TrainingOutcome") -> None:
    if outcome.finished_steps:
        _name_files(outcome.folder)
    if outcome.interrupted:
        typer.echo(f"interrupted after step {outcome.finished_steps}; go on with --resume {outcome.folder}")


def _name_files(folder: Path) -> None:
    typer.echo(f"policy      {folder / 'policy'}")
    typer.echo(f"curve       {folder / 'curve.png'}")
    typer.echo(f"metrics     {folder / 'metrics.jsonl'}")
