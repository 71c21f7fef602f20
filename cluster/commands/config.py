"""``cacovid config``: show a configuration with every field's explanation."""

from pathlib import Path
from typing import Annotated

import typer


def config(
    path: Annotated[Path | None, typer.Argument(help="TOML file; the defaults without one")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="section.field=value, repeatable")] = None,
) -> None:
    """Print the resolved configuration as TOML, each field with its explanation."""
    from cacovid.config_files import load_config, to_toml

    typer.echo(to_toml(load_config(path, overrides or [])))
