"""``cacovid config``: show a configuration with every field's explanation."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.shared import Overrides


def config(
    path: Annotated[Path | None, typer.Argument(help="TOML file; the defaults without one")] = None,
    overrides: Overrides = None,
) -> None:
    """Print the resolved configuration as TOML, each field with its explanation."""
    from cacovid.config_files import load_config, to_toml

    typer.echo(to_toml(load_config(path, overrides or [])))
