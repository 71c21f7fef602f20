"""The questions that a run trains on."""

import os
from pathlib import Path

from cacovid.config import TrainConfig
from cacovid.data.skipped import SkippedItems
from cacovid.data.table import read_questions
from cacovid.embedded.dataset import TABLE, write_dataset
from cacovid.embedded.splits import split_seeds
from cacovid.records import VideoQuestion


def training_items(config: TrainConfig, folder: Path, skipped: SkippedItems) -> list[VideoQuestion]:
    """Read the table of ``config.data.train``, or draw the embedded training clips into ``folder`` once.

    Args:
        skipped: Where rows that cannot be used are set aside.

    Raises:
        UserError: The table is missing or malformed, or too many of its rows are.
    """
    if config.data.train != "embedded":
        return read_questions(Path(config.data.train), skipped=skipped)
    clips = folder / f"clips-{config.data.clip_seed}-{config.data.train_clips}"
    if not (clips / TABLE).exists():
        write_dataset(clips, split_seeds("train", config.data.train_clips, config.data.clip_seed), workers=_cpus())
    return read_questions(clips / TABLE)


def _cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))
