"""Seconds of a video and folders of frames: what is read of them, and that the cache tells them apart."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cacovid.config import DataConfig, ModelConfig
from cacovid.data.cache import feature_key
from cacovid.data.content import content_key
from cacovid.data.question import check_question
from cacovid.data.reader import ItemReader
from cacovid.data.table import SCHEMA, read_questions, write_questions
from cacovid.data.video import probe_video, read_frames
from cacovid.errors import BadItem
from cacovid.records import VideoQuestion
from tests.support.video_files import grey_levels, write_video

LEVELS = grey_levels(61)  # at 10 frames a second: 6.1 s


def item(video: Path, **changes: object) -> VideoQuestion:
    made = VideoQuestion("q", str(video), "what colour?", ("red", "blue"), "A", "multiple choice", "made")
    return replace(made, **changes)


def levels_of(frames: np.ndarray) -> list[float]:
    return frames.reshape(len(frames), -1).mean(axis=1).tolist()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.avi"])
def test_only_the_seconds_asked_for_are_sampled(tmp_path: Path, name: str) -> None:
    codec = {"a.webm": "libvpx-vp9", "a.avi": "mpeg4"}.get(name, "libx264")
    path = write_video(tmp_path / name, LEVELS, codec=codec, b_frames=0 if name == "a.avi" else 2)
    video = read_frames(path, 3, start=2.0, end=4.0)
    assert video.timestamps == pytest.approx([2, 3, 4], abs=0.11)
    assert video.duration_s == pytest.approx(2.1, abs=0.01)
    assert video.fps == pytest.approx(3 / 2.1, abs=0.01)
    assert levels_of(video.frames) == pytest.approx([LEVELS[i] for i in (20, 30, 40)], abs=12)


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, 1.0, [0, 0.5, 1.0]),
        (5.0, None, [5, 5.5, 6]),
        (5.0, 99.0, [5, 5.5, 6]),  # behind the end: to the last frame
        (3.01, 3.02, [3, 3, 3]),  # between two frames: the nearest one
    ],
)
def test_open_and_overlong_segments_reach_to_the_first_and_last_frame(
    tmp_path: Path, start: float | None, end: float | None, expected: list[float]
) -> None:
    path = write_video(tmp_path / "a.mp4", LEVELS)
    assert read_frames(path, 3, start=start, end=end).timestamps == pytest.approx(expected)


@pytest.mark.parametrize(("start", "end", "reason"), [(7, 9, "starts at 7 s of 6.1"), (3, 3, "empty"),
                                                      (-1, 3, "empty"), (4, 2, "empty")])  # fmt: skip
def test_a_segment_outside_the_video_is_a_bad_item(tmp_path: Path, start: float, end: float, reason: str) -> None:
    path = write_video(tmp_path / "a.mp4", LEVELS)
    with pytest.raises(BadItem, match=reason):
        read_frames(path, 3, start=start, end=end)


def test_sampling_by_rate_takes_as_many_frames_as_the_seconds_hold_up_to_the_bound(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", LEVELS)
    assert len(read_frames(path, 32, fps=2).frames) == 12  # 6.1 s
    assert len(read_frames(path, 8, fps=2).frames) == 8
    assert len(read_frames(path, 32, fps=2, start=1.0, end=2.9).frames) == 4
    assert len(read_frames(path, 32, fps=0.01).frames) == 1


def frame_folder(folder: Path, levels: list[int], size: tuple[int, int] = (64, 48)) -> Path:
    folder.mkdir(parents=True)
    for number, level in enumerate(levels):
        Image.new("RGB", size, (level, level, level)).save(folder / f"frame-{number}.png")  # 10 sorts before 2 as text
    (folder / "notes.txt").write_text("no frame")
    return folder


def test_a_folder_of_frames_is_read_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    levels = grey_levels(12)
    folder = frame_folder(tmp_path / "clip", levels)
    video = read_frames(folder, 12)
    assert levels_of(video.frames) == levels
    assert video.timestamps == pytest.approx([i / 3 for i in range(12)])
    assert video.duration_s == pytest.approx(4.0)
    assert levels_of(read_frames(folder, 2, start=1.0, end=2.0).frames) == [levels[3], levels[6]]
    assert probe_video(folder).num_frames == 12


def test_frames_of_a_folder_are_upright_of_one_size_and_bounded(tmp_path: Path) -> None:
    folder = frame_folder(tmp_path / "clip", [50, 100])
    Image.new("RGB", (128, 96), (200, 200, 200)).save(folder / "frame-2.jpg")
    turned = Image.Exif()
    turned[274] = 6  # stored lying on its side
    Image.new("L", (48, 64), 150).save(folder / "frame-3.jpg", exif=turned)
    assert levels_of(read_frames(folder, 4).frames) == pytest.approx([50, 100, 200, 150], abs=1)
    with pytest.raises(BadItem, match=r"frame-2.jpg: frames of 128x96 exceed 5000 pixels"):
        read_frames(folder, 4, max_pixels=5_000)


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_broken_frame_is_a_bad_item(tmp_path: Path, content: bytes | None) -> None:
    folder = frame_folder(tmp_path / "clip", [50, 100, 150])
    broken = folder / "frame-1.png"
    broken.write_bytes(broken.read_bytes()[:-30] if content is None else content)
    with pytest.raises(BadItem, match=r"frame-1.png: is no readable picture"):
        read_frames(folder, 3)


def test_the_content_of_a_folder_is_its_frames_in_order(tmp_path: Path) -> None:
    first = content_key(frame_folder(tmp_path / "a", [10, 20]))
    assert content_key(frame_folder(tmp_path / "b", [10, 20])) == first
    assert content_key(frame_folder(tmp_path / "c", [20, 10])) != first


def test_segments_of_one_video_are_cached_apart(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", LEVELS, size=(64, 64))
    config = ModelConfig(num_frames=4)
    reader = ItemReader.load(config, DataConfig(), tmp_path / "cache")
    whole = reader.encode(item(path)).features
    late = reader.encode(item(path, start=4.0)).features
    assert not torch.equal(whole, late)
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 2
    again = ItemReader.load(config, DataConfig(), tmp_path / "cache")
    assert torch.equal(again.encode(item(path, start=4.0)).features, late)
    assert torch.equal(again.encode(item(path)).features, whole)


def test_a_key_without_segment_is_what_it_was_before_there_were_segments() -> None:
    assert (
        feature_key("a", "m", 8) == feature_key("a", "m", 8, None, None) == "fe8db5701d9d1ed15ff342bfe186974c98759999"
    )
    assert len({feature_key("a", "m", 8, *ends) for ends in [(None, 2.0), (2.0, None), (0.0, 2.0)]}) == 3


def test_the_columns_survive_a_round_trip_and_old_tables_lack_them(tmp_path: Path) -> None:
    made = item(tmp_path / "a.mp4", start=1.5, end=2.0, duration=6.1, group="short", question_type="colour")
    write_questions(tmp_path / "t.parquet", [made, item(tmp_path / "a.mp4", id="r")])
    assert read_questions(tmp_path / "t.parquet") == [made, item(tmp_path / "a.mp4", id="r")]
    old = pq.read_table(tmp_path / "t.parquet").select(SCHEMA.names[:7])
    pq.write_table(old, tmp_path / "old.parquet")
    assert read_questions(tmp_path / "old.parquet")[0] == item(tmp_path / "a.mp4")


def test_missing_numbers_of_other_writers_are_none(tmp_path: Path) -> None:
    write_questions(tmp_path / "t.parquet", [item(tmp_path / "a.mp4")])
    table = pq.read_table(tmp_path / "t.parquet").select(SCHEMA.names[:7])
    table = table.append_column("start", pa.array([3])).append_column("end", pa.array([float("nan")]))
    pq.write_table(table.append_column("group", pa.nulls(1)), tmp_path / "t.parquet")
    (read,) = read_questions(tmp_path / "t.parquet")
    assert (read.start, read.end, read.group) == (3.0, None, "")


@pytest.mark.parametrize(("changes", "reason"), [({"start": 4.0, "end": 4.0}, "from 4.0 to 4.0 s is empty"),
                                                 ({"end": -1.0}, "is empty"),
                                                 ({"duration": 0.0}, "duration is 0.0 s")])  # fmt: skip
def test_a_segment_that_cannot_be_is_a_bad_row(changes: dict[str, float], reason: str) -> None:
    with pytest.raises(BadItem, match=reason):
        check_question(item(Path("a.mp4"), **changes))
