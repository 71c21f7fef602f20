"""``cacovid jobs``: those of a Ray cluster."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.shared import Address, console
from cluster.commands.status import duration, figures, when
from cluster.commands.submit import follow

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

    from cluster.jobs.client import JobApi

app = typer.Typer(no_args_is_help=True, help="Jobs of a Ray cluster, by `cacovid submit` or `ray job submit`.")

Id = Annotated[str, typer.Argument(help="the job's id, as `cacovid jobs list` gives it")]


@app.command("list")
def list_jobs(address: Address = None) -> None:
    """All submitted jobs that the cluster remembers, the newest first."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("job", "state", "started", "took"):
        table.add_column(name, no_wrap=True)
    table.add_column("command", overflow="fold")
    for job in _api(address).jobs():
        if job.submission_id is not None:
            table.add_row(job.submission_id, job.status.value, *_times(job), escape(job.entrypoint))
    console().print(table)


@app.command()
def logs(
    id: Id,
    follow_it: Annotated[bool, typer.Option("--follow", help="until the job ends, with its exit code")] = False,
    address: Address = None,
) -> None:
    """What a job has printed. Ctrl-C ends the following alone."""
    api = _api(address)
    api.job(id)
    if follow_it:
        raise typer.Exit(follow(api, id))
    typer.echo(api.logs(id), nl=False)


@app.command()
def status(id: Id, address: Address = None) -> None:
    """How a job stands, and its run."""
    api = _api(address)
    _show(api, api.job(id))


@app.command()
def stop(id: Id, address: Address = None) -> None:
    """End a job, wait until it has saved its run, and say how it ended."""
    from cluster.jobs.client import ended
    from cluster.jobs.submission import wait

    api = _api(address)
    job = api.job(id)
    if ended(job):
        typer.echo(f"job {id} had ended before")
    else:
        api.stop(id)
        typer.echo(f"waiting for job {id} to end: {job.message}")
    _show(api, wait(api, id))


def _api(address: str | None) -> "JobApi":
    from cluster.jobs.client import HERE, JobApi

    return JobApi(address or HERE)


def _show(api: "JobApi", job: "JobDetails") -> None:
    from rich.markup import escape

    from cluster.jobs.client import ended
    from cluster.jobs.submission import run_of

    out = console()
    started, took = _times(job)
    code = "" if job.driver_exit_code is None else f", exit code {job.driver_exit_code}"
    out.print(f"[bold]{job.submission_id}[/]  {job.status.value}{code}, started {started}, took {took}")
    out.print(escape(job.entrypoint))
    run = run_of(api, job)
    if run is not None:
        out.print(figures(run, not ended(job)))
    elif job.message:
        out.print(escape(job.message))


def _times(job: "JobDetails") -> tuple[str, str]:
    """When it started, and how long it took or has taken."""
    started = (job.start_time or 0) / 1000
    return when(started), duration((job.end_time or 1000 * time.time()) / 1000 - started)
