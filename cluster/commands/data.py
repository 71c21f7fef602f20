"""``cacovid data``: import, look at, check and filter question tables."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cacovid.errors import UserError
from cacovid.limits import MAX_PIXELS
from cluster.commands.blind_test import blind_test
from cluster.commands.progress import Progress
from cluster.commands.shared import free

if TYPE_CHECKING:
    from cacovid.data.checking import TableReport
    from cacovid.records import VideoQuestion

SHOWN_REASONS = 10

app = typer.Typer(help="Import, look at, check and filter question tables.", no_args_is_help=True)

TableFile = Annotated[Path, typer.Argument(metavar="TABLE", help="Parquet table of questions")]


@app.command()
def check(
    table: TableFile,
    frames: Annotated[int, typer.Option(min=1, help="frames to decode of each video")] = 8,
    max_pixels: Annotated[int, typer.Option(min=1, help="largest frame accepted, in pixels")] = MAX_PIXELS,
    against: Annotated[
        list[Path] | None, typer.Option(help="evaluation table whose videos must not be in TABLE; again for more")
    ] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="decoding processes; default: one a core")] = None,
    report: Annotated[Path | None, typer.Option(help="write all that was found here (JSON)")] = None,
    skipped: Annotated[Path | None, typer.Option(help="write unusable items here (JSON lines)")] = None,
) -> None:
    """Check columns, rows and videos; exit code 1 if an item is unusable or a video is in an evaluation table too."""
    from cacovid.data.checking import check_table
    from cacovid.data.skipped import SkippedItems

    aside = SkippedItems(skipped)
    with Progress() as progress:
        checked = check_table(
            table,
            frames,
            max_pixels,
            aside,
            progress.show,
            against=against or (),
            workers=workers or len(os.sched_getaffinity(0)),
        )
    console = progress.console
    console.print(_summary(checked))
    _list(console, [f"unusable: {reason}" for reason in aside.reasons.values()], "--skipped FILE lists them all")
    leaks = [f"leak ({each.how}): {each.video} is {each.other} of {each.table}" for each in checked.leaked]
    _list(console, leaks, "--report FILE lists them all")
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(checked.as_json(), indent=1, ensure_ascii=False))
        console.print(f"wrote {report}", highlight=False, markup=False, soft_wrap=True)
    if aside.reasons or checked.leaked:
        raise typer.Exit(1)


def _list(console: Console, lines: list[str], all_of_them: str) -> None:
    for line in lines[:SHOWN_REASONS]:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if len(lines) > SHOWN_REASONS:
        console.print(f"... and {len(lines) - SHOWN_REASONS} more; {all_of_them}")


@app.command("import")
def import_collection(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="collection; a wrong name lists all")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="its JSON or Parquet file, or a folder of them")],
    out: Annotated[Path, typer.Option(help="Parquet table to write; rejected rows go beside it")],
    videos: Annotated[Path | None, typer.Option(help="folder of its videos; default: that of PATH")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the output table")] = False,
) -> None:
    """Bring a public collection into a table: every row is imported, or listed with its reason."""
    free(out, overwrite)
    from cacovid.data.importers.run import import_questions, rejected_file

    imported = import_questions(kind, path, out, videos)
    reasons = ", ".join(f"{reason} ({count})" for reason, count in imported.rejected.most_common())
    rejected = f", {imported.rejected.total()} rejected: {reasons}" if reasons else ", none rejected"
    missing = f" ({imported.missing_videos} not found)" if imported.missing_videos else ""
    console = Console()
    console.print(
        f"{imported.questions} questions on {imported.videos} videos{missing} imported{rejected}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    for written in (out, rejected_file(out)):
        console.print(f"wrote {written}", highlight=False, markup=False, soft_wrap=True)


@app.command()
def show(
    table: TableFile,
    rows: Annotated[int, typer.Option(min=1, help="questions to print")] = 10,
    problem_type: Annotated[str | None, typer.Option(help="only this problem type")] = None,
) -> None:
    """Print the first questions of a table."""
    from cacovid.answering.prompting import format_prompt
    from cacovid.data.question import PROBLEM_TYPES
    from cacovid.data.skipped import SkippedItems
    from cacovid.data.table import stream_questions

    if problem_type not in (None, *PROBLEM_TYPES):
        raise UserError(f"problem type {problem_type!r} is unknown: choose one of {', '.join(PROBLEM_TYPES)}")
    shown = Table(show_lines=True)
    for name in ("id", "question", "answer", "type", "video", "evidence"):
        shown.add_column(name, overflow="fold")
    found = 0
    for item in stream_questions(table, skipped=SkippedItems(None)):
        found += problem_type in (None, item.problem_type)
        if problem_type not in (None, item.problem_type) or found > rows:
            continue
        cells = (item.id, format_prompt(item), item.answer, item.problem_type, _clip(item))
        shown.add_row(*(escape(cell) for cell in cells), f"{len(item.evidence)} tokens" if item.evidence else "-")
    console = Console()
    console.print(shown)
    console.print(f"{min(rows, found)} of {found} questions", highlight=False)


def _clip(item: "VideoQuestion") -> str:
    """The video's name, with the seconds that are watched."""
    name = Path(item.video).name
    if item.start is None and item.end is None:
        return name
    return f"{name} {item.start or 0:g}-{'' if item.end is None else f'{item.end:g}'} s"


app.command("blind-test")(blind_test)


def _summary(report: "TableReport") -> Table:
    """Counts by column, videos, sizes, lengths and what stands twice."""
    videos = report.videos.values()
    shown = Table(title=escape(Path(report.table).name), show_header=False)
    shown.add_row("usable questions", str(report.usable))
    shown.add_row("unusable rows", str(len(report.unusable)))
    shown.add_row("videos that decode", f"{len(videos)} of {len(videos) + len(report.unreadable)}")
    for name, counts in report.counts.items():
        if counts:
            shown.add_row(
                f"by {name}", escape(", ".join(f"{value} {count}" for value, count in Counter(counts).most_common(8)))
            )
    if videos:
        lengths = sorted(video.duration_s for video in videos)
        sizes = Counter(f"{video.width}x{video.height}" for video in videos)
        middle = lengths[len(lengths) // 2]
        shown.add_row("seconds", f"{lengths[0]:.1f} to {lengths[-1]:.1f}, median {middle:.1f}")
        shown.add_row("frame sizes", ", ".join(f"{size} ({count})" for size, count in sizes.most_common(5)))
    shown.add_row("with evidence", str(report.with_evidence))
    shown.add_row("about a segment", f"{report.segments}, {len(report.ends_behind)} of them end behind the video")
    shown.add_row("stated duration differs", f"{len(report.durations_apart)} videos")
    shown.add_row("questions that repeat", str(sum(len(ids) - 1 for ids in report.same_questions)))
    repeats = Counter(each.how for each in report.repeated)
    shown.add_row("pairs of equal videos", ", ".join(f"{how} {count}" for how, count in repeats.items()) or "none")
    shown.add_row("in an evaluation table", f"{len({each.video for each in report.leaked})} videos")
    return shown
