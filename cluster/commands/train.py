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
    from cacovid.config import TrainConfig
    from cluster.training.run import TrainingOutcome
    from cluster.training.run_directory import RunDirectory


def train(
    config: ConfigFile = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="folder of the run; the run that is there goes on")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="set the run in --out aside and start over")] = False,
    resume: Annotated[Path | None, typer.Option(help="like --out, with the configuration of the run there")] = None,
    address: Annotated[
        str | None,
        typer.Option(envvar="RAY_ADDRESS", help="Ray cluster, e.g. auto or host:6379; starts one here if not given"),
    ] = None,
) -> None:
    """Train a compression policy. The same command again goes on from the newest checkpoint, with the same result.

    Ctrl-C ends the run with a checkpoint. What the run learns must stay as it is; where it runs (actors, learners,
    ZeRO stage) may change, and run.steps may be raised.
    """
    if (out is None) == (resume is None):
        raise UserError("give either --out DIR for a new run or --resume DIR for an earlier one")
    if resume is not None and (config is not None or overrides or fresh):
        raise UserError(
            f"--resume continues with the run's own configuration: leave out --config, --set and --fresh, or give "
            f"--out {resume} with them"
        )
    run, resolved = _open(out, config, overrides or [], fresh) if out is not None else _resume(resume)
    if run.is_complete(resolved.run.steps):
        _name_files(run.folder)
        typer.echo(
            f"all {resolved.run.steps} steps are done; for more raise run.steps, to start over add --fresh "
            "or choose another --out"
        )
        run.release()
        return
    from cluster.training.run import train as run_training

    try:
        with Progress() as progress:
            progress.wait("starting rollout actors and learners")
            report = partial(_show, progress, resolved.run.steps)
            outcome = run_training(resolved, run, report, address=address, tell=progress.wait)
    except KeyboardInterrupt:
        typer.echo(f"ended at once; go on from the newest checkpoint with --resume {run.folder}", err=True)
        raise typer.Exit(130) from None
    finally:
        run.release()
    _say(outcome)
    if outcome.interrupted:
        raise typer.Exit(130)


def _open(out: Path, config: Path | None, overrides: list[str], fresh: bool) -> tuple["RunDirectory", "TrainConfig"]:
    from cacovid.config_files import load_config
    from cluster.training.run_directory import RunDirectory

    resolved = load_config(config, overrides)
    aside = RunDirectory.set_aside(out) if fresh else None
    if aside is not None:
        typer.echo(f"the earlier {out} is now {aside}")
    run = RunDirectory.open(out, resolved)
    newest = run.newest_checkpoint()
    if newest is not None and not run.is_complete(resolved.run.steps):
        typer.echo(f"going on with the run in {out} from its checkpoint {newest.name}")
    return run, resolved


def _resume(folder: Path | None) -> tuple["RunDirectory", "TrainConfig"]:
    from cluster.training.run_directory import RunDirectory

    assert folder is not None
    return RunDirectory.resume(folder)


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
