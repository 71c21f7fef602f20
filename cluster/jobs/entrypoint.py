"""The ``cacovid`` command that a job runs, checked before anything is uploaded."""

import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer._click.core import Command
from typer._click.exceptions import UsageError
from typer.core import TyperGroup

from cacovid.errors import UserError

WRITTEN = ("out", "resume")  # options that name a folder which must outlive the job


@dataclass(frozen=True)
class Entrypoint:
    """A command line of ``cacovid``, without that name itself."""

    arguments: tuple[str, ...]
    parameters: dict[str, Any]  # as parsed, by their Python names

    @property
    def shell(self) -> str:
        """As Ray's job API takes it."""
        return shlex.join(["cacovid", *self.arguments])


def parse_entrypoint(commands: Command, arguments: Sequence[str]) -> Entrypoint:
    """Read ``arguments`` as the command line itself would.

    Raises:
        UserError: There is no such command, or it would not take these options.
    """
    command, names, rest = commands, [], list(arguments)
    if rest[:1] == ["cacovid"]:
        rest = rest[1:]
    given = tuple(rest)
    while isinstance(command, TyperGroup):
        names.append(rest.pop(0) if rest else "")
        if names[-1] not in command.commands:
            raise UserError(
                f"`cacovid {' '.join(names)}` is no command to submit: give one of {', '.join(command.commands)} "
                "behind --"
            )
        command = command.commands[names[-1]]
    try:
        parameters = command.make_context(" ".join(["cacovid", *names]), rest).params
    except UsageError as error:
        raise UserError(f"cacovid {' '.join(names)}: {error.format_message()}") from error
    return Entrypoint(given, dict(parameters))


def check_paths(entrypoint: Entrypoint, packed: Collection[str]) -> None:
    """See that the job finds its configuration, and that what it writes outlives it.

    Args:
        packed: Files of the working directory that are uploaded.

    Raises:
        UserError: A configuration stays behind, or a folder is named that goes with the job's copy.
    """
    for name in WRITTEN:
        folder = entrypoint.parameters.get(name)
        if folder is not None and not re.match(r"/|[a-z0-9]+:/", str(folder)):
            raise UserError(
                f"--{name} {folder} would lie in the job's copy of the working directory, which goes with the job: "
                "name a place that all machines of the cluster see, e.g. /shared/runs/mine"
            )
    config = entrypoint.parameters.get("config")
    if config is not None and not Path(config).is_absolute() and Path(config).as_posix() not in packed:
        raise UserError(
            f"--config {config} is not among the files that are uploaded: it is read from --working-dir, without what "
            ".gitignore and .rayignore name"
        )
