"""Options that several commands share, and what they do with their arguments. Imports nothing heavy."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from cacovid.errors import UserError
from cacovid.policy_folder import policy_folder

if TYPE_CHECKING:
    from rich.console import Console

FILE_WIDTH = 1000
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file; the embedded default without one")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="section.field=value, repeatable")]
Work = Annotated[
    Path | None, typer.Option(help="with a store: folder here to work in; one of the user's cache if not given")
]
Joined = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="RAY_ADDRESS",
        help="Ray cluster, e.g. auto or host:6379; starts one here if not given",
    ),
]
Model = Annotated[
    str | None, typer.Option("--model", help="'embedded', a folder or a hub id; without it the policy's model")
]
Frames = Annotated[
    int | None, typer.Option("--frames", help="frames to sample of a video; without it as in the policy's training")
]
Rule = Annotated[
    str | None, typer.Option("--rule", help="global, half-uniform or frame-budgets; without it each policy's own")
]
Address = Annotated[
    str | None,
    # Ray's client takes these before any address that it is given; here the option comes first.
    typer.Option(
        "--address",
        envvar=["RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"],
        help="Ray cluster: http://host:8265 (its dashboard), host:6379 or auto; without it port 8265 of this machine",
    ),
]


def refuse_work(work: Path | None, folder: str) -> None:
    """Raises UserError where --work is given with a run that lies in a folder."""
    if work is not None:
        raise UserError(f"--work {work} goes with a store, but {folder} is a folder, which is worked in itself")


def run_plainly(command: Callable[[], object]) -> None:
    """Run a command line: a user's mistake is one line on stderr and exit code 2, never a traceback."""
    try:
        command()
    except UserError as error:
        _stderr().print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        _stderr().print("interrupted")
        sys.exit(130)


def _stderr() -> "Console":
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True)


def console() -> "Console":
    """For tables of words: as wide as the terminal, and where there is none nothing is folded."""
    from rich.console import Console

    made = Console(highlight=False)
    if not made.is_terminal:
        made.width = FILE_WIDTH
    return made


def numbers(text: str, option: str) -> list[float]:
    """``"1,0.25"`` -> ``[1.0, 0.25]``. Raises UserError for anything else."""
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserError(f"{option} {text!r} is no list of numbers: write e.g. {option} 0.25,0.1") from None


def names(text: str) -> list[str]:
    """``"policy, random"`` -> ``["policy", "random"]``."""
    return [part.strip() for part in text.split(",") if part.strip()]


def labelled_policies(arguments: list[str]) -> dict[str, Path]:
    """``LABEL=DIR`` or ``DIR`` (label 'policy') into folders that hold a policy.

    Raises:
        UserError: a label given twice.
    """
    folders: dict[str, Path] = {}
    for argument in arguments:
        label, equals, folder = argument.partition("=")
        if not equals or not label or "/" in label:
            label, folder = "policy", argument
        if label in folders:
            raise UserError(f"two policies are called {label!r}: label each as LABEL=DIR")
        folders[label] = policy_folder(Path(folder))
    return folders


def free(out: Path, overwrite: bool) -> None:
    """Raises UserError where the file ``out`` is there and may not be replaced."""
    if out.exists() and not overwrite:
        raise UserError(f"{out} exists: choose another --out, or add --overwrite")


def output_folder(path: Path, overwrite: bool) -> None:
    """Make ``path``, which must be empty unless its files may be replaced.

    Raises:
        UserError: the folder holds something, or cannot be made.
    """
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: choose a folder with --out")
    if path.exists() and any(path.iterdir()) and not overwrite:
        raise UserError(f"output directory {path} is in use: choose another with --out, or add --overwrite")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {path}: {error.strerror}") from None
