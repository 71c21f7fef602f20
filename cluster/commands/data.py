"""``cacovid data``: look at, check and filter question tables."""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Look at, check and filter question tables.", no_args_is_help=True)

Table = Annotated[Path, typer.Argument(help="Parquet table of questions")]


@app.command()
def check(
    table: Table,
    frames: Annotated[int, typer.Option(min=1, help="frames to decode of each video")] = 8,
    max_pixels: Annotated[int, typer.Option(min=1, help="largest frame accepted, in pixels")] = 33_177_600,
    skipped: Annotated[Path | None, typer.Option(help="write unusable items here (JSON lines)")] = None,
) -> None:
    """Check columns, rows and that every video decodes; exit code 1 if any item is unusable."""
    from cluster.commands.question_data import check_table

    if not check_table(table, frames, max_pixels, skipped):
        raise typer.Exit(1)


@app.command()
def show(
    table: Table,
    rows: Annotated[int, typer.Option(min=1, help="questions to print")] = 10,
    problem_type: Annotated[str | None, typer.Option(help="only this problem type")] = None,
) -> None:
    """Print the first questions of a table."""
    from cluster.commands.question_data import show_table

    show_table(table, rows, problem_type)


@app.command("blind-test")
def blind_test(
    table: Table,
    out: Annotated[Path, typer.Option(help="Parquet table of the questions that need the video")],
    model: Annotated[str, typer.Option(help="'embedded', a folder or a hub id")] = "embedded",
    instruction: Annotated[str, typer.Option(help="line appended to multiple-choice prompts")] = "",
    right_from: Annotated[float, typer.Option(min=0, max=1, help="reward from which an answer counts as right")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="longest answer that is not multiple choice")] = 32,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the output table")] = False,
) -> None:
    """Drop questions that the model answers right without the video (the paper's blind test)."""
    from cluster.commands.question_data import BlindTest, blind_test_table

    blind_test_table(table, out, BlindTest(model, instruction, right_from, max_new_tokens), overwrite)
