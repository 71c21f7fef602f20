"""``cacovid train``."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from cacovid.errors import UserError
from cluster.commands.progress import Progress
from cluster.commands.shared import ConfigFile, Joined, Overrides, Work, refuse_work

if TYPE_CHECKING:
    from cacovid.config import TrainConfig
    from cluster.training.price import Price
    from cluster.training.run import TrainingOutcome
    from cluster.training.run_directory import RunDirectory
    from cluster.training.stores.address import StoreAddress
    from cluster.training.stores.run_store import RunStore


def train(
    config: ConfigFile = None,
    overrides: Overrides = None,
    out: Annotated[
        str | None,
        typer.Option(help="folder of the run, or a store as s3://bucket/run; the run that is there goes on"),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="set the run in --out aside and start over")] = False,
    resume: Annotated[str | None, typer.Option(help="like --out, with the configuration of the run there")] = None,
    work: Work = None,
    address: Joined = None,
) -> None:
    """Train a compression policy. The same command again goes on from the newest checkpoint, with the same result.

    Ctrl-C ends the run with a checkpoint. What the run learns must stay as it is; where it runs (actors, learners,
    ZeRO stage) may change, and run.steps may be raised.
    """
    if (out is None) == (resume is None):
        raise UserError("give either --out DIR for a new run or --resume DIR for an earlier one")
    from cluster.training.stores.address import StoreAddress

    place = resume if out is None else out
    assert place is not None
    where = StoreAddress.parse(place)
    name = place if where is None else where.shown
    files = name if where is None else where.folder
    if resume is not None and (config is not None or overrides or fresh):
        raise UserError(
            f"--resume continues with the run's own configuration: leave out --config, --set and --fresh, or give "
            f"--out {name} with them"
        )
    given = None if out is None else _load(config, overrides or [])
    if where is not None:
        opened = _open_stored(where, work, given, fresh)
    else:
        refuse_work(work, name)
        opened = _resume(Path(name)) if given is None else _open(Path(name), given, fresh)
    run, resolved = opened.run, opened.config
    if run is None or run.is_complete(resolved.run.steps):
        _name_files(files)
        typer.echo(
            f"all {resolved.run.steps} steps are done; for more raise run.steps, to start over add --fresh "
            "or choose another --out"
        )
        if run is not None:
            run.release()
        return
    newest = run.newest_checkpoint()
    if newest is not None and given is not None:
        typer.echo(f"going on with the run in {name} from its checkpoint {newest.name}")
    outcome = _run(opened, run, address)
    if outcome.finished_steps:
        _name_files(files)
        _show_price(outcome.price)
    if outcome.interrupted:
        typer.echo(f"interrupted after step {outcome.finished_steps}; go on with --resume {name}")
        raise typer.Exit(130)


class Opened(NamedTuple):
    """A run to be trained; ``run`` is None where the store has all of its steps."""

    run: "RunDirectory | None"
    config: "TrainConfig"
    store: "RunStore | None" = None


def _load(config: Path | None, overrides: list[str]) -> "TrainConfig":
    from cacovid.config_files import load_config

    return load_config(config, overrides)


def _open(out: Path, config: "TrainConfig", fresh: bool) -> Opened:
    from cluster.training.run_directory import RunDirectory

    aside = RunDirectory.set_aside(out) if fresh else None
    if aside is not None:
        typer.echo(f"the earlier {out} is now {aside}")
    return Opened(RunDirectory.open(out, config), config)


def _resume(folder: Path) -> Opened:
    from cluster.training.run_directory import RunDirectory

    return Opened(*RunDirectory.resume(folder))


def _open_stored(where: "StoreAddress", work: Path | None, config: "TrainConfig | None", fresh: bool) -> Opened:
    from cluster.training.stores.opening import open_stored

    stored = open_stored(where, work, config, fresh=fresh, tell=typer.echo)
    if stored.run is not None:
        typer.echo(f"working in {stored.run.folder}")
    return Opened(stored.run, stored.config, stored.store)


def _run(opened: Opened, run: "RunDirectory", address: str | None) -> "TrainingOutcome":
    from cluster.training.run import train as run_training

    config, store = opened.config, opened.store
    try:
        with Progress() as progress:
            progress.wait("starting rollout actors and learners")
            report = partial(_show, progress, config.run.steps)
            return run_training(config, run, report, store=store, address=address, tell=progress.wait)
    except KeyboardInterrupt:
        typer.echo(f"ended at once; go on from the newest checkpoint with --resume {run.address}", err=True)
        raise typer.Exit(130) from None
    finally:
        run.release()


def _show(progress: Progress, steps: int, row: Mapping[str, float]) -> None:
    """One finished step, in figures that fit a line of 80 columns."""
    figures = f"reward {row['top_k_reward']:.3f}  loss {row['loss']:.3f}"
    throughput = f"{row['combinations_per_second']:.0f} combinations/s"
    progress.show("step", int(row["step"]) + 1, steps, f"{figures}  {throughput}")


def _show_price(price: "Price | None") -> None:
    if price is not None:
        typer.echo(f"{price.name}: {price.value}")


def _name_files(folder: str) -> None:
    typer.echo(f"policy      {folder}/policy")
    typer.echo(f"curve       {folder}/curve.png")
    typer.echo(f"metrics     {folder}/metrics.jsonl")
