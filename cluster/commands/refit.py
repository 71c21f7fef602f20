"""``cacovid refit``."""

from pathlib import Path
from typing import Annotated

import typer

from cacovid.errors import UserError
from cluster.commands.progress import Progress
from cluster.commands.shared import Joined, Overrides, Work, refuse_work


def refit(
    run: Annotated[str, typer.Argument(help="folder of a run, or its store as s3://bucket/run")],
    updates: Annotated[int, typer.Option(min=1, help="optimiser steps")] = 400,
    overrides: Overrides = None,
    work: Work = None,
    address: Joined = None,
) -> None:
    """Train a fresh policy on all answers that a run has kept, without asking for any; it goes to RUN/refit.

    --set changes where it runs (actors, learners, ZeRO stage), not what is learned.
    """
    from cacovid.config_files import parse_override, with_overrides
    from cluster.training.refit import refit as train_anew
    from cluster.training.run_directory import RunDirectory
    from cluster.training.same_run import may_change
    from cluster.training.stores.address import StoreAddress
    from cluster.training.stores.opening import open_to_read

    given = dict(map(parse_override, overrides or []))
    other = [name for name in given if not may_change(name)]
    if other:
        raise UserError(f"--set {other[0]}: a refit learns as its run did; only where it runs may change")
    where, store = StoreAddress.parse(run), None
    if where is None:
        refuse_work(work, run)
        directory, config = RunDirectory.resume(Path(run))
    else:
        store, config, directory = open_to_read(where, work)
        typer.echo(f"working in {directory.folder}")
    try:
        with Progress() as progress:
            progress.wait("starting rollout actors and learners")

            def show(done: int, loss: float) -> None:
                progress.show("update", done, updates, f"loss {loss:.3f}")

            policy = train_anew(directory, with_overrides(config, given), updates, show, address=address)
        if store is not None:
            store.publish_folder(policy)
    finally:
        directory.release()
    typer.echo(f"policy      {policy if where is None else f'{where.folder}/{policy.name}'}")
