"""Bad items are set aside with the reason and the run goes on, until too many are bad."""

import json
from pathlib import Path

import pytest

from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cacovid.data.table import read_questions, write_questions
from cacovid.errors import UserError
from cacovid.records import VideoQuestion
from tests.integration.conftest import run_training


def spoiled(table: Path, folder: Path, count: int) -> Path:
    """A copy of the table whose first ``count`` questions point at truncated videos."""
    items: list[VideoQuestion] = read_questions(table)
    folder.mkdir()
    for index in range(count):
        broken = folder / f"broken-{index}.mp4"
        broken.write_bytes(Path(items[index].video).read_bytes()[:900])
        items[index] = VideoQuestion(**{**vars(items[index]), "video": str(broken)})
    write_questions(folder / "questions.parquet", items)
    return folder / "questions.parquet"


def test_run_goes_on_without_the_broken_video(
    table: Path, small_run: TrainConfig, cluster: None, tmp_path: Path
) -> None:
    config = with_overrides(
        small_run, {"data.train": str(spoiled(table, tmp_path / "data", 1)), "run.steps": 6, "run.checkpoint_every": 6}
    )
    trained = run_training(config, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert len(lines) == 1
    assert lines[0]["id"] == read_questions(table)[0].id
    assert "broken-0.mp4" in lines[0]["reason"]
    assert sum(row["questions"] for row in trained.run.rows()) == 23  # one epoch of 24 questions less one


def test_too_many_broken_videos_stop_the_run(
    table: Path, small_run: TrainConfig, cluster: None, tmp_path: Path
) -> None:
    config = with_overrides(
        small_run, {"data.train": str(spoiled(table, tmp_path / "data", 12)), "run.steps": 6, "data.max_skipped": 0.1}
    )
    with pytest.raises(UserError, match=r"raise data\.max_skipped"):
        run_training(config, tmp_path / "run")
