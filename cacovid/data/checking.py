"""Whether a question table can be used: its rows, and whether every video decodes."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from cacovid.data.skipped import SkippedItems
from cacovid.data.table import read_questions
from cacovid.data.video import read_frames
from cacovid.errors import BadItem
from cacovid.records import VideoQuestion


@dataclass(frozen=True)
class FoundVideo:
    """A video that decodes."""

    width: int  # of a frame, in pixels
    height: int
    duration_s: float


@dataclass(frozen=True)
class CheckedTable:
    """What a table and its videos hold."""

    usable: tuple[VideoQuestion, ...]
    found: dict[str, FoundVideo]  # by path
    videos: int  # different ones, those that do not decode included


def check_table(
    table: str | os.PathLike[str],
    frames: int,
    max_pixels: int,
    skipped: SkippedItems,
    progress: Callable[[int, int], None],
) -> CheckedTable:
    """Read ``table`` and decode ``frames`` frames of each of its videos once.

    Args:
        max_pixels: Larger frames are refused.
        skipped: Where unusable rows and questions on videos that do not decode are set aside.
        progress: Called with questions done and in all.

    Raises:
        UserError: No table, wrong columns, no usable row.
    """
    items = read_questions(table, skipped=skipped)
    usable: list[VideoQuestion] = []
    videos: dict[str, FoundVideo | BadItem] = {}
    for done, item in enumerate(items, start=1):
        if item.video not in videos:
            videos[item.video] = _look(item.video, frames, max_pixels)
        video = videos[item.video]
        if isinstance(video, BadItem):
            skipped.add(item.id, item.video, str(video))
        else:
            usable.append(item)
        progress(done, len(items))
    found = {path: video for path, video in videos.items() if not isinstance(video, BadItem)}
    return CheckedTable(tuple(usable), found, len(videos))


def _look(path: str, frames: int, max_pixels: int) -> FoundVideo | BadItem:
    try:
        video = read_frames(path, frames, max_pixels)
    except BadItem as error:
        return error
    height, width = video.frames.shape[1:3]
    return FoundVideo(width, height, video.duration_s)
