"""The bodies of ``cacovid data``."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from cacovid.config import ModelConfig
from cacovid.data.skipped import SkippedItems
from cacovid.data.table import PROBLEM_TYPES, read_questions, write_questions
from cacovid.data.video import read_frames
from cacovid.errors import BadItem, UserError
from cacovid.records import VideoQuestion

SHOWN_REASONS = 10


class _Measured(NamedTuple):
    size: str  # of a frame, "width x height"
    duration_s: float


def check_table(table: Path, frames: int, max_pixels: int, skipped: Path | None) -> bool:
    """Print what the table and its videos hold; True if every item is usable.

    Raises:
        UserError: no table, wrong columns, no usable row.
    """
    console = Console()
    aside = SkippedItems(skipped)
    items = read_questions(table, skipped=aside)
    reasons: dict[str, str | None] = {}
    decoded: dict[str, _Measured] = {}
    for item in track(items, "decoding", console=console, disable=not console.is_terminal, transient=True):
        if item.video not in reasons:
            try:
                video = read_frames(item.video, frames, max_pixels)
            except BadItem as error:
                reasons[item.video] = str(error)
            else:
                reasons[item.video] = None
                height, width = video.frames.shape[1:3]
                decoded[item.video] = _Measured(f"{width}x{height}", video.duration_s)
        reason = reasons[item.video]
        if reason is not None:
            aside.add(item.id, item.video, reason)
    usable = [item for item in items if reasons[item.video] is None]
    console.print(_summary(table, items, usable, decoded, aside.skipped))
    for reason in list(aside.reasons.values())[:SHOWN_REASONS]:
        console.print(f"unusable: {reason}", highlight=False, markup=False, soft_wrap=True)
    if len(aside.reasons) > SHOWN_REASONS:
        console.print(f"... and {len(aside.reasons) - SHOWN_REASONS} more; --skipped FILE lists them all")
    return not aside.reasons


def show_table(table: Path, rows: int, problem_type: str | None) -> None:
    """Print the first questions, of one problem type if given; UserError for an unknown one."""
    if problem_type not in (None, *PROBLEM_TYPES):
        raise UserError(f"problem type {problem_type!r} is unknown: choose one of {', '.join(PROBLEM_TYPES)}")
    console = Console()
    items = [
        item for item in read_questions(table, skipped=SkippedItems(None)) if problem_type in (None, item.problem_type)
    ]
    shown = Table(show_lines=True)
    for name in ("id", "question", "answer", "type", "video", "evidence"):
        shown.add_column(name, overflow="fold")
    for item in items[:rows]:
        options = "  ".join(f"{chr(65 + place)}. {text}" for place, text in enumerate(item.options))
        asked = f"{item.question}\n{options}" if options else item.question
        cells = (item.id, asked, item.answer, item.problem_type, Path(item.video).name)
        shown.add_row(*(escape(cell) for cell in cells), f"{len(item.evidence)} tokens" if item.evidence else "-")
    console.print(shown)
    console.print(f"{min(rows, len(items))} of {len(items)} questions", highlight=False)


@dataclass(frozen=True)
class BlindTest:
    """How the blind test asks."""

    model: str
    instruction: str
    right_from: float
    max_new_tokens: int


def blind_test_table(table: Path, out: Path, settings: BlindTest, overwrite: bool) -> None:
    """Write the questions that the model does not answer right without their video.

    Raises:
        UserError: the output exists, or no question is left.
    """
    from cacovid.evaluation.blind import blind_test
    from cacovid.models.loading import load_video_llm

    if out.exists() and not overwrite:
        raise UserError(f"{out} exists: choose another --out, or add --overwrite")
    console = Console()
    aside = SkippedItems(None)
    items = read_questions(table, skipped=aside)
    video_llm = load_video_llm(ModelConfig(path=settings.model, max_new_tokens=settings.max_new_tokens))
    outcome = blind_test(video_llm, items, instruction=settings.instruction, right_from=settings.right_from)
    if not outcome.needed:
        raise UserError(f"all {len(outcome.guessed)} questions are answered right without a video: nothing to train on")
    write_questions(out, outcome.needed)
    unusable = len(outcome.unusable) + aside.skipped
    share = len(outcome.guessed) / max(1, len(outcome.guessed) + len(outcome.needed))
    console.print(
        f"{len(outcome.guessed)} questions ({100 * share:.1f} %) answered right without the video were dropped, "
        f"{unusable} were unusable, {len(outcome.needed)} remain",
        highlight=False,
    )
    console.print(f"wrote {out}", highlight=False, markup=False, soft_wrap=True)


def _summary(
    table: Path,
    items: list[VideoQuestion],
    usable: list[VideoQuestion],
    decoded: dict[str, _Measured],
    unusable: int,
) -> Table:
    """Counts by problem type, videos, sizes and lengths."""
    shown = Table(title=escape(table.name), show_header=False)
    shown.add_row("usable questions", str(len(usable)))
    shown.add_row("unusable rows", str(unusable))
    shown.add_row("videos that decode", f"{len(decoded)} of {len({item.video for item in items})}")
    types = Counter(item.problem_type for item in usable)
    shown.add_row("problem types", ", ".join(f"{name} {count}" for name, count in types.most_common()) or "-")
    sources = Counter(item.source for item in usable)
    shown.add_row("sources", escape(", ".join(f"{name} {count}" for name, count in sources.most_common(8))) or "-")
    if decoded:
        lengths = sorted(video.duration_s for video in decoded.values())
        sizes = Counter(video.size for video in decoded.values())
        middle = lengths[len(lengths) // 2]
        shown.add_row("seconds", f"{lengths[0]:.1f} to {lengths[-1]:.1f}, median {middle:.1f}")
        shown.add_row("frame sizes", ", ".join(f"{size} ({count})" for size, count in sizes.most_common(5)))
    shown.add_row("with evidence", str(sum(bool(item.evidence) for item in usable)))
    return shown
