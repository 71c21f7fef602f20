"""Which frames are read from a file, and what becomes of files that cannot be read."""

from pathlib import Path

import numpy as np
import pytest

import cacovid.data.pictures as pictures_module
import cacovid.data.video_file as video_module
from cacovid.data.content import content_key
from cacovid.data.video import probe_video, read_frames
from cacovid.errors import BadItem
from tests.support.video_files import grey_levels, write_audio, write_video


def levels_of(frames: np.ndarray) -> list[float]:
    return frames.reshape(len(frames), -1).mean(axis=1).tolist()


def test_as_many_frames_as_the_file_has_are_all_read_in_order(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", grey_levels(8))
    video = read_frames(path, 8)
    assert video.frames.shape == (8, 48, 64, 3)
    assert video.frames.dtype == np.uint8
    assert levels_of(video.frames) == pytest.approx(grey_levels(8), abs=4)
    assert video.timestamps == pytest.approx([0.1 * i for i in range(8)])
    assert video.duration_s == pytest.approx(0.8)
    assert video.fps == pytest.approx(10)


@pytest.mark.parametrize("key_every", [1, 7, 200])
def test_sampled_frames_of_a_longer_file_are_evenly_spread_whatever_its_key_frames(
    tmp_path: Path, key_every: int
) -> None:
    levels = grey_levels(91)
    video = read_frames(write_video(tmp_path / "clip.mp4", levels, key_every=key_every), 4)
    assert video.timestamps == pytest.approx([0, 3, 6, 9])
    assert levels_of(video.frames) == pytest.approx([levels[i] for i in (0, 30, 60, 90)], abs=4)
    assert video.fps == pytest.approx(4 / 9.1)


def test_frames_before_a_target_are_skipped_by_seeking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "long.mp4", grey_levels(400), key_every=10)
    decoded = 0
    original = video_module._clock

    def counting(pts: int | None, dts: int | None, count: int) -> int:
        nonlocal decoded
        decoded += 1
        return original(pts, dts, count)

    monkeypatch.setattr(video_module, "_clock", counting)
    read_frames(path, 4)
    assert decoded < 60  # at most one group of pictures per target


def test_variable_frame_rate_is_sampled_by_time_not_by_index(tmp_path: Path) -> None:
    # 20 frames in the first 0.2 s, then 4 frames over 4 s
    times = [10 * i for i in range(20)] + [1000, 2000, 3000, 4000]
    levels = grey_levels(24)
    video = read_frames(write_video(tmp_path / "vfr.mp4", levels, milliseconds=times), 5)
    assert video.timestamps == pytest.approx([0, 1, 2, 3, 4])
    assert levels_of(video.frames) == pytest.approx([levels[i] for i in (0, 20, 21, 22, 23)], abs=4)


def test_a_one_frame_clip_repeats_its_frame(tmp_path: Path) -> None:
    video = read_frames(write_video(tmp_path / "one.mp4", [120]), 8)
    assert video.frames.shape == (8, 48, 64, 3)
    assert levels_of(video.frames) == pytest.approx([120] * 8, abs=4)
    assert np.isfinite(video.fps)
    assert video.fps > 0


def test_a_short_clip_repeats_frames_in_order(tmp_path: Path) -> None:
    video = read_frames(write_video(tmp_path / "three.mp4", [30, 120, 210]), 6)
    assert levels_of(video.frames) == sorted(levels_of(video.frames))
    assert {round(level / 30) for level in levels_of(video.frames)} == {1, 4, 7}


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.webm", "libvpx-vp9"), ("a.avi", "mpeg4"),
                                             ("a.ts", "libx264"), ("a.h264", "libx264"), ("a.avi", "libx264"),
                                             ("a.mp4", "libx265")])  # fmt: skip
def test_other_containers_and_codecs_are_read(tmp_path: Path, name: str, codec: str) -> None:
    levels = grey_levels(24)
    fixed_rate = name.endswith((".avi", ".h264"))
    path = write_video(tmp_path / name, levels, codec=codec, b_frames=0 if fixed_rate else 2)
    video = read_frames(path, 4)
    found = levels_of(video.frames)
    assert found[0] == pytest.approx(levels[0], abs=12)
    assert found[-1] == pytest.approx(levels[-1], abs=12)
    assert found == sorted(found)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_stored_rotation_is_applied(tmp_path: Path, degrees: int) -> None:
    import av

    path = tmp_path / "upright.mp4"
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:8, :8] = 255  # a white corner at the top left
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    rotate_track(path, degrees)
    frame = read_frames(path, 1).frames[0]
    expected = np.rot90(picture, -degrees // 90)
    assert frame.shape == expected.shape
    assert np.abs(frame.astype(int) - expected.astype(int)).mean() < 5


def rotate_track(path: Path, clockwise: int) -> None:
    """Set the display matrix of the only track header, as phones do."""
    one, zero, last = 1 << 16, 0, 1 << 30
    cosine, sine = {90: (zero, one), 180: (-one, zero), 270: (zero, -one)}[clockwise]
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    matrix = (cosine, sine, 0, -sine, cosine, 0, 0, 0, last)
    data[start : start + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in matrix)
    path.write_bytes(data)


def test_a_frame_beyond_1080p_is_scaled_down_and_keeps_its_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures_module, "HELD_PIXELS", 32 * 24)
    assert read_frames(write_video(tmp_path / "clip.mp4", [90, 90]), 2).frames.shape == (2, 24, 32, 3)


def damaged_files(folder: Path) -> dict[str, Path]:
    noise = write_video(folder / "noise.mp4", grey_levels(60), options={"movflags": "faststart"}).read_bytes()
    plain = write_video(folder / "plain.mp4", grey_levels(60)).read_bytes()
    mkv = write_video(folder / "plain.mkv", grey_levels(300)).read_bytes()
    contents = {
        "truncated-index-at-end.mp4": plain[: len(plain) // 2],
        "truncated-index-first.mp4": noise[: -len(noise) // 4],
        "truncated.mkv": mkv[: len(mkv) // 2],
        "empty.mp4": b"",
        "text.mp4": b"hello, this is no video\n" * 50,
        "playlist.mp4": b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nplain.mp4\n#EXT-X-ENDLIST\n",
        "header-only.mp4": plain[:36],
    }
    (folder / "folder").mkdir()
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return {name: folder / name for name in contents} | {
        "missing.mp4": folder / "missing.mp4",
        "folder": folder / "folder",
        "audio.m4a": write_audio(folder / "audio.m4a"),
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("truncated-index-at-end.mp4", "decoded"),
        ("truncated-index-first.mp4", "truncated"),
        ("truncated.mkv", "truncated"),
        ("empty.mp4", "empty"),
        ("text.mp4", "decoded"),
        ("playlist.mp4", "decoded"),
        ("header-only.mp4", "decoded"),
        ("missing.mp4", "no such video"),
        ("folder", "holds no frames"),
        ("audio.m4a", "no video stream"),
    ],
)
def test_an_unreadable_file_is_a_bad_item_explained_in_one_line(tmp_path: Path, name: str, reason: str) -> None:
    path = damaged_files(tmp_path)[name]
    with pytest.raises(BadItem, match=reason) as caught:
        read_frames(path, 8)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_stream_without_frames_is_a_bad_item(tmp_path: Path) -> None:
    path = write_video(tmp_path / "none.mkv", [])
    with pytest.raises(BadItem, match=r"frames|decoded"):
        read_frames(path, 8)


def test_a_huge_frame_is_refused_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "clip.mp4", grey_levels(4), size=(640, 480))

    def no_decoding(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(video_module, "_decode_afresh", no_decoding)
    with pytest.raises(BadItem, match="640x480 exceed 300000 pixels"):
        read_frames(path, 4, max_pixels=300_000)


def growing_file(folder: Path) -> Path:
    """A stream whose header says 64x48 and whose later frames are 320x240."""
    small = write_video(folder / "small.h264", grey_levels(6), b_frames=0)
    large = write_video(folder / "large.h264", grey_levels(6), size=(320, 240), b_frames=0)
    path = folder / "growing.h264"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    return path


def test_frames_that_grow_in_mid_stream_are_brought_to_the_first_size(tmp_path: Path) -> None:
    video = read_frames(growing_file(tmp_path), 12)
    assert video.frames.shape == (12, 48, 64, 3)
    assert levels_of(video.frames) == pytest.approx(grey_levels(6) * 2, abs=6)


def test_frames_that_grow_beyond_the_bound_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadItem):
        read_frames(growing_file(tmp_path), 12, max_pixels=10_000)


def test_probe_reads_size_and_length(tmp_path: Path) -> None:
    info = probe_video(write_video(tmp_path / "clip.mp4", grey_levels(20)))
    assert (info.width, info.height, info.num_frames) == (64, 48, 20)
    assert info.duration_s == pytest.approx(2.0)


def test_content_key_follows_the_bytes_and_not_the_name(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1" * 3_000_000)
    (tmp_path / "b").write_bytes(b"1" * 3_000_000)
    first = content_key(tmp_path / "a")
    assert first == content_key(tmp_path / "b")
    (tmp_path / "a").write_bytes(b"1" * 2_999_999 + b"2")
    assert content_key(tmp_path / "a") != first
    with pytest.raises(BadItem, match="check the path"):
        content_key(tmp_path / "c")
