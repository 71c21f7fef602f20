"""``cacovid submit``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cluster.commands.shared import Address

if TYPE_CHECKING:
    from cluster.jobs.client import JobApi

NOT_FOUND = 127  # exit code of a shell


def submit(
    context: typer.Context,
    command: Annotated[list[str], typer.Argument(help="what to run there: -- train --config ... --out ...")],
    address: Address = None,
    working_dir: Annotated[
        Path, typer.Option(help="folder that the job runs in a copy of; its code counts where it is a checkout")
    ] = Path(),
    detach: Annotated[bool, typer.Option("--detach", help="print the job's id and end")] = False,
    install: Annotated[
        bool,
        typer.Option("--install", help="install the checkout by its constraints.txt; without it the cluster has it"),
    ] = False,
    env: Annotated[list[str] | None, typer.Option(help="NAME=VALUE for the job's processes, repeatable")] = None,
    entrypoint_resources: Annotated[
        str | None, typer.Option(help="of the machine for the driver: driver=1 or '{\"driver\": 1}'")
    ] = None,
    stop_wait: Annotated[
        int, typer.Option(min=1, help="seconds that a stopped job has to save, above run.stop_grace_s")
    ] = 120,
) -> None:
    """Run a command of cacovid as a job of a Ray cluster, and follow what it prints.

    Ctrl-C ends the following alone (exit code 130). Otherwise the exit code is the job's: 0 if it succeeded, 130 if it
    was stopped, 1 if it never ran.
    """
    from cluster.jobs import entrypoint, package, submission
    from cluster.jobs.client import HERE, JobApi

    checked = entrypoint.parse_entrypoint(context.find_root().command, command)
    packed = package.packed_files(working_dir)
    package.check_size(working_dir, packed)
    entrypoint.check_paths(checked, packed)
    resources = None if entrypoint_resources is None else submission.parse_resources(entrypoint_resources)
    variables = {**submission.stop_wait(stop_wait), **submission.parse_env(env or [])}
    described = submission.runtime_env(working_dir, packed, variables, install)
    api = JobApi(address or HERE)
    id = api.submit(checked.shell, runtime_env=described, entrypoint_resources=resources)
    if detach:
        typer.echo(id)
        return
    typer.echo(f"job {id} at {api.url}; Ctrl-C ends the following alone")
    raise typer.Exit(follow(api, id))


def follow(api: "JobApi", id: str) -> int:
    """Print what the job prints until it ends or Ctrl-C; the exit code."""
    import asyncio
    from functools import partial

    from ray.job_submission import JobStatus

    from cluster.jobs import submission

    job = api.job(id)
    if job.status == JobStatus.PENDING and job.message:
        typer.echo(job.message)
    try:
        asyncio.run(submission.follow(api, id, partial(typer.echo, nl=False)))
    except KeyboardInterrupt:
        typer.echo(
            f"\nthe job goes on; look again with: cacovid jobs logs {id} --follow; stop it with: cacovid jobs stop {id}"
            f" (--address {api.address})",
            err=True,
        )
        return submission.INTERRUPTED
    job = submission.wait(api, id)
    code = submission.exit_code(job)
    typer.echo(f"job {id} {job.status.value.lower()}" + (f" (exit code {code})" if code else ""), err=bool(code))
    if code == NOT_FOUND:
        typer.echo("no cacovid on the PATH of the machines: install it there or add --install", err=True)
    elif code and job.driver_exit_code is None and job.message:
        typer.echo(job.message, err=True)  # of Ray: there was no driver to say anything
    return code
