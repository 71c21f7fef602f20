"""``cacovid status``."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cacovid.errors import UserError
from cluster.commands.shared import Address, console

if TYPE_CHECKING:
    from rich.table import Table

    from cluster.training.run_status import RunStatus


def status(
    run: Annotated[
        str | None, typer.Argument(help="folder of a run, store that this machine trains into, or a cluster's URL")
    ] = None,
    address: Address = None,
) -> None:
    """Where a run stands, from its own files; without RUN, where those of a cluster's jobs stand."""
    if run is None or run.startswith(("http://", "https://")):
        _show_cluster(run or address)
    else:
        _show_folder(_folder_of(run))


def _folder_of(run: str) -> Path:
    """``run`` itself, or where this machine works on the run of a store."""
    from cluster.training.stores.address import StoreAddress
    from cluster.training.stores.opening import default_folder

    store = StoreAddress.parse(run)
    folder = Path(run) if store is None else default_folder(store)
    if store is not None and not folder.is_dir():
        raise UserError(f"this machine has no working folder for {store.shown}: give the one of --work, or --address")
    return folder


def _show_folder(folder: Path) -> None:
    from cluster.training.run_directory import RunDirectory
    from cluster.training.run_status import RunStatus

    found = RunStatus.read(folder)
    try:
        written = RunDirectory(folder).is_held()
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror}") from error
    console().print(figures(found, written))


def _show_cluster(address: str | None) -> None:
    from rich.markup import escape

    from cluster.jobs.client import HERE, JobApi, ended
    from cluster.jobs.submission import run_of

    out = console()
    api = JobApi(address or HERE)
    runs = [(job, run) for job in api.jobs() if (run := run_of(api, job)) is not None]
    for job, run in runs:
        out.print(f"[bold]{escape(job.submission_id or 'driver ' + str(job.job_id))}[/]  {job.status.value}")
        out.print(figures(run, not ended(job)))
    if not runs:
        out.print(f"no run of cacovid at {api.url}")


def figures(run: "RunStatus", written: bool) -> "Table":
    """The run's line of each kind.

    Args:
        written: A process writes it now.
    """
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    state = run.state.value if written or not run.state.at_work else f"killed while {run.state.value}"
    table.add_row("run", escape(run.folder))
    table.add_row("state", f"{state}, attempt {run.attempt}")
    table.add_row("step", f"{run.step} of {run.steps}")
    if run.figures is not None:
        pace = f"{run.figures.steps_per_hour:.1f} steps/h, {run.figures.combinations_per_second:.0f} combinations/s"
        table.add_row("pace", f"{pace}, {duration(run.seconds_left)} left" if run.step < run.steps else pace)
        table.add_row("reward", f"{run.figures.reward:.3f}, of the policy's own top k {run.figures.top_k_reward:.3f}")
    if run.price is not None:
        table.add_row("price", f"{run.price.name}: {run.price.value}")
    there = f"{run.actors_ready} of {run.actors_wanted} ready, " if written else ""
    table.add_row("actors", f"{there}{run.actors_dead} lost")
    table.add_row("checkpoint", run.checkpoint or "none yet")
    table.add_row("last error", escape(run.error or "none"))
    table.add_row("written", f"{'now' if written else 'no longer'}, by process {run.pid} of {escape(run.host)}")
    table.add_row("started", f"{when(run.started_at)}, last word {when(run.written_at)}")
    return table


def duration(seconds: float | None) -> str:
    """As h:mm:ss."""
    minutes, rest = divmod(round(seconds or 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def when(seconds: float) -> str:
    """Local date and time of seconds since 1970."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
