"""The questions that a run trains or is evaluated on: a table's, or those of embedded clips drawn once."""

import os
from collections.abc import Sequence
from pathlib import Path

from cacovid.config import TrainConfig
from cacovid.data.skipped import SkippedItems
from cacovid.data.stored import StoredQuestions
from cacovid.data.table import read_questions, stream_questions
from cacovid.embedded.dataset import SOURCE as EMBEDDED
from cacovid.embedded.dataset import TABLE, WORLDS, write_dataset
from cacovid.embedded.splits import split_seeds
from cacovid.records import VideoQuestion

EVALUATION_CLIPS = 250  # embedded ones, unless told


def training_items(config: TrainConfig, folder: Path, skipped: SkippedItems) -> Sequence[VideoQuestion]:
    """Read the table of ``config.data.train``, or draw the embedded training clips into ``folder`` once.

    Args:
        folder: The run's own; a table's questions stay on disk there while they are used.
        skipped: Where rows that cannot be used are set aside.

    Raises:
        UserError: The table is missing or malformed, or too many of its rows are.
    """
    if config.data.train not in WORLDS:
        return StoredQuestions(stream_questions(config.data.train, skipped=skipped), folder)
    seeds = split_seeds("train", config.data.train_clips, config.data.clip_seed)
    return _drawn(folder, config.data.train, f"{config.data.clip_seed}-{config.data.train_clips}", seeds, skipped)


def evaluation_items(
    data: str, split: str, clips: int | None, folder: Path, skipped: SkippedItems
) -> list[VideoQuestion]:
    """The questions about the first ``clips`` videos of the table ``data``, or of embedded clips of ``split``.

    Args:
        clips: None takes all of a table, 250 embedded ones.
        folder: Where embedded clips are drawn once.

    Raises:
        UserError: As :func:`training_items`, or an unknown split.
    """
    if data not in WORLDS:
        return first_clips(read_questions(data, skipped=skipped), clips)
    count = clips or EVALUATION_CLIPS
    return _drawn(folder, data, f"{split}-{count}", split_seeds(split, count), skipped)


def _drawn(parent: Path, world: str, name: str, seeds: range, skipped: SkippedItems) -> list[VideoQuestion]:
    folder = parent / f"{'' if world == EMBEDDED else f'{world}-'}clips-{name}"
    if not (folder / TABLE).exists():
        write_dataset(folder, seeds, world=world, workers=len(os.sched_getaffinity(0)))
    return read_questions(folder / TABLE, skipped=skipped)


def first_clips(items: list[VideoQuestion], count: int | None) -> list[VideoQuestion]:
    """The questions about the first ``count`` different videos, those about one video side by side."""
    by_video: dict[str, list[VideoQuestion]] = {}
    for item in items:
        by_video.setdefault(item.video, []).append(item)
    return [item for video in list(by_video)[:count] for item in by_video[video]]
