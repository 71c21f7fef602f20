"""The ``cacovid`` command.

    main ──► cluster/commands/NAME.py: options ──cheap checks──► cacovid, cluster.training or serving ──► prints

Heavy imports wait until a command runs, so that ``--help`` answers at once. Only commands print: what they call
takes a function to report progress to and returns records.
"""

from importlib.metadata import version
from typing import Annotated

import typer

from cluster.commands import (
    compress,
    config,
    data,
    demo,
    embedded,
    evaluate,
    jobs,
    plan,
    policy,
    proxy,
    refit,
    report,
    serve,
    status,
    submit,
    train,
)
from cluster.commands.shared import run_plainly

app = typer.Typer(
    name="cacovid",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"cacovid {version('cacovid')}")
        raise typer.Exit


@app.callback()
def common(
    asked: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")
    ] = False,
) -> None:
    """Train, evaluate and use token compressors for Video-LLMs."""


app.command("train")(train.train)
app.command("refit")(refit.refit)
app.command("evaluate")(evaluate.evaluate)
app.command("compress")(compress.compress)
app.command("report")(report.report)
app.command("demo")(demo.demo)
app.command("config")(config.config)
app.command("plan")(plan.plan)
app.command("serve")(serve.serve)
app.command("proxy")(proxy.proxy)
app.command("submit", context_settings={"allow_interspersed_args": False})(submit.submit)
app.command("status")(status.status)
app.add_typer(jobs.app, name="jobs")
app.add_typer(embedded.app, name="embedded")
app.add_typer(data.app, name="data")
app.add_typer(policy.app, name="policy")


def main() -> None:
    """Run the command line."""
    run_plainly(app)


if __name__ == "__main__":
    main()
