"""Whether a question table can be used, and what of it stands twice or in an evaluation table too.

table ──stream──► videos named ──examine_all──► facts ──┐
table ──stream again──► rows against facts ─────────────┴──► TableReport
"""

import hashlib
import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from cacovid.data.examining import VideoFacts, examine_all
from cacovid.data.likeness import alike
from cacovid.data.skipped import SkippedItems
from cacovid.data.table import stream_questions
from cacovid.records import VideoQuestion

Progress = Callable[[str, int, int], None]  # stage, done, in all
_APART_S, _APART = 1.0, 0.05  # a stated duration may differ by a second and by this share


@dataclass(frozen=True)
class Repeated:
    """Two videos with the same contents."""

    video: str
    other: str
    how: str  # "same file", "same bytes" or "same pictures"
    distance: float = 0.0  # bits a frame
    table: str = ""  # of ``other``, where it is another one


@dataclass
class TableReport:
    """What a table and its videos hold."""

    table: str
    usable: int = 0
    with_evidence: int = 0
    segments: int = 0  # questions about a part of their video
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # usable questions by column and value
    unusable: dict[str, str] = field(default_factory=dict)  # reasons by id
    videos: dict[str, VideoFacts] = field(default_factory=dict)  # those that decode, by path
    unreadable: dict[str, str] = field(default_factory=dict)  # reasons by path
    durations_apart: dict[str, tuple[float, float]] = field(default_factory=dict)  # stated and found seconds, by path
    ends_behind: list[str] = field(default_factory=list)  # ids whose segment ends more than a second behind the video
    same_questions: list[list[str]] = field(default_factory=list)  # ids
    repeated: list[Repeated] = field(default_factory=list)
    leaked: list[Repeated] = field(default_factory=list)  # ``other`` lies in an evaluation table

    def as_json(self) -> dict[str, Any]:
        """Everything but the pictures' hashes."""
        shown = asdict(self)
        for facts in shown["videos"].values():
            del facts["hashes"]
        return shown


COUNTED = ("problem_type", "source", "group", "question_type")


def check_table(
    table: str | os.PathLike[str],
    frames: int,
    max_pixels: int,
    skipped: SkippedItems,
    progress: Progress,
    *,
    against: Sequence[str | os.PathLike[str]] = (),
    workers: int = 1,
) -> TableReport:
    """Stream ``table`` and open each of its videos once.

    Args:
        frames: Decoded of each video and compared.
        max_pixels: Larger frames are refused.
        skipped: Where unusable rows and questions on videos that cannot be used are set aside.
        against: Evaluation tables whose videos ``table`` should not hold.
        workers: Processes that decode.

    Raises:
        UserError: No table, wrong columns, no usable row.
    """
    report = TableReport(os.fspath(table), counts={name: {} for name in COUNTED})
    videos: dict[str, None] = {}
    texts = array("Q")
    for item in stream_questions(table, skipped=skipped):
        videos.setdefault(item.video)
        texts.append(_same(item))
    others = {os.fspath(each): _videos(each) for each in against}
    paths = list(videos | dict.fromkeys(path for each in others.values() for path in each))
    found = examine_all(paths, frames, max_pixels, workers, lambda done, total: progress("videos", done, total))
    report.unreadable = {path: facts for path in videos if isinstance(facts := found[path], str)}
    report.videos = {path: facts for path in videos if isinstance(facts := found[path], VideoFacts)}
    _check_rows(report, table, skipped, texts)
    readable = {path: facts for path, facts in found.items() if isinstance(facts, VideoFacts)}
    _compare(report, readable, others)
    report.unusable = dict(skipped.reasons)
    return report


def _videos(table: str | os.PathLike[str]) -> dict[str, None]:
    return dict.fromkeys(item.video for item in stream_questions(table, skipped=SkippedItems(None)))


def _same(item: VideoQuestion) -> int:
    """A hash that two rows share which ask the same about the same."""
    asked = repr((item.clip, item.question, item.options)).encode()
    return int.from_bytes(hashlib.blake2b(asked, digest_size=8).digest(), "little")


def _check_rows(report: TableReport, table: str | os.PathLike[str], skipped: SkippedItems, texts: "array[int]") -> None:
    values, times = np.unique(np.asarray(texts), return_counts=True)
    twice: dict[int, list[str]] = {int(value): [] for value in values[times > 1]}
    for item in stream_questions(table, skipped=SkippedItems(None)):
        reason = report.unreadable.get(item.video) or _outside(item, report.videos[item.video])
        if reason is not None:
            skipped.add(item.id, item.video, reason)
            continue
        _count(report, item, report.videos[item.video])
        if (same := _same(item)) in twice:
            twice[same].append(item.id)
    report.same_questions = [ids for ids in twice.values() if len(ids) > 1]


def _outside(item: VideoQuestion, video: VideoFacts) -> str | None:
    if item.start is not None and item.start >= video.duration_s:
        at = f"{item.start:g} s of {video.duration_s:.1f} s"
        return f"{item.video}: the segment starts at {at}; correct the column start"
    return None


def _count(report: TableReport, item: VideoQuestion, video: VideoFacts) -> None:
    report.usable += 1
    report.with_evidence += bool(item.evidence)
    report.segments += item.start is not None or item.end is not None
    for name in COUNTED:
        if value := getattr(item, name):
            report.counts[name][value] = report.counts[name].get(value, 0) + 1
    if item.end is not None and item.end > video.duration_s + _APART_S:
        report.ends_behind.append(item.id)
    if item.duration is not None and abs(item.duration - video.duration_s) > max(_APART_S, _APART * video.duration_s):
        report.durations_apart[item.video] = (item.duration, video.duration_s)


def _compare(report: TableReport, facts: dict[str, VideoFacts], others: dict[str, dict[str, None]]) -> None:
    """Fill in what stands twice, and what stands in an evaluation table too."""
    for table, held in others.items():
        report.leaked += [Repeated(path, path, "same file", table=table) for path in report.videos if path in held]
    by_content: dict[str, list[str]] = {}
    for path, video in facts.items():
        by_content.setdefault(video.content, []).append(path)
    copies = list(by_content.values())
    for paths in copies:
        own = [path for path in paths if path in report.videos]
        report.repeated += [Repeated(own[0], path, "same bytes") for path in own[1:]]
        _leaks(report, paths, paths, "same bytes", 0.0, others)
    for first, second, distance in alike([facts[paths[0]].hashes for paths in copies]):
        one, two = ([path for path in copies[place] if path in report.videos] for place in (first, second))
        if one and two:
            report.repeated.append(Repeated(one[0], two[0], "same pictures", distance))
        _leaks(report, copies[first], copies[second], "same pictures", distance, others)
        _leaks(report, copies[second], copies[first], "same pictures", distance, others)


def _leaks(
    report: TableReport,
    ones: Sequence[str],
    equals: Sequence[str],
    how: str,
    distance: float,
    others: dict[str, dict[str, None]],
) -> None:
    """Those of ``ones`` in the table, each with the first of ``equals`` in each evaluation table."""
    for table, held in others.items():
        there = next((path for path in equals if path in held), None)
        if there is not None:
            report.leaked += [
                Repeated(path, there, how, distance, table)
                for path in ones
                if path in report.videos and path != there and path not in held
            ]
