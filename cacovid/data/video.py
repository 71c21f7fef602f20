"""Evenly sampled frames of a video file, decoded with PyAV.

Two passes: the first reads packet headers only (no decoding), so that frames are chosen by
presentation time whatever the frame rate does; the second decodes just the chosen frames, jumping
over key frames where it can. Memory holds the chosen frames alone.
"""

import bisect
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import av
import av.container
import av.video.stream
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

from cacovid.errors import BadItem
from cacovid.limits import MAX_PIXELS

HELD_PIXELS = 2_073_600  # larger frames are scaled down to 1080p's area: no tower reads more of them
# Playlists (HLS, DASH, concat) may name other files or hosts; they are no video files to us.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,h264,hevc,ivf,m4v"


@dataclass(frozen=True)
class DecodedVideo:
    """Frames sampled evenly over a video's presentation time, upright."""

    frames: NDArray[np.uint8]  # (n, height, width, 3) RGB
    timestamps: tuple[float, ...]  # (n,) seconds after the first frame of the video
    duration_s: float  # presentation time of the whole video
    fps: float  # rate of the *sampled* frames, n / duration_s


@dataclass(frozen=True)
class VideoInfo:
    """What the headers of a video say, before anything is decoded."""

    width: int
    height: int
    num_frames: int
    duration_s: float


@dataclass(frozen=True)
class _Index:
    """Presentation clock of every frame, from packet headers."""

    ticks: list[int]  # ascending
    keys: list[int]  # ascending, ticks of key frames
    tick_s: float  # seconds per tick
    frame_s: float  # mean seconds per frame
    counted: bool  # the stream stores no times: ticks are running numbers, and it cannot be sought in

    @property
    def duration_s(self) -> float:
        return (self.ticks[-1] - self.ticks[0]) * self.tick_s + self.frame_s


def read_frames(path: str | os.PathLike[str], num_frames: int, max_pixels: int = MAX_PIXELS) -> DecodedVideo:
    """``num_frames`` frames spread evenly from the first to the last one.

    A video with fewer frames repeats them, a 1-frame clip its only one. Rotation stored in the file is applied.
    Frames above ``HELD_PIXELS`` are scaled down, so that memory stays bounded.

    Raises:
        BadItem: no such file, not a video, no video stream, truncated, no frames, more than
            ``max_pixels`` pixels a frame (found before decoding), or an undecodable frame.
    """
    with _opened(path, max_pixels) as (container, stream):
        index = _index(container, stream, path)
    wanted = _spread(index.ticks, num_frames)
    try:
        pictures = _decode_afresh(path, max_pixels, index, wanted, seeking=not index.counted)
    except _SeekMissedError:
        pictures = _decode_afresh(path, max_pixels, index, wanted, seeking=False)
    frames = np.stack([pictures[tick] for tick in wanted])
    seconds = tuple((tick - index.ticks[0]) * index.tick_s for tick in wanted)
    return DecodedVideo(frames, seconds, index.duration_s, num_frames / index.duration_s)


def probe_video(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """Size, length and frame count from the headers alone; raises :class:`BadItem` as :func:`read_frames`."""
    with _opened(path, max_pixels) as (container, stream):
        index = _index(container, stream, path)
        return VideoInfo(stream.codec_context.width, stream.codec_context.height, len(index.ticks), index.duration_s)


def content_key(path: str | os.PathLike[str]) -> str:
    """Hash of the file's bytes (hex), the same wherever the file lies.

    Raises:
        BadItem: no such file.
    """
    try:
        status = os.stat(path)
        return _hash_file(os.fspath(path), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise BadItem(f"{path}: cannot be read ({error.strerror}); check the path") from None


@lru_cache(maxsize=4096)
def _hash_file(path: str, size: int, modified: int) -> str:
    """Hash once per state of the file: size and modification time are part of the memo's key."""
    digest = hashlib.blake2b(digest_size=20)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _opened(
    path: str | os.PathLike[str], max_pixels: int
) -> Iterator[tuple[av.container.InputContainer, av.video.stream.VideoStream]]:
    """The container and its video stream, checked; every failure inside becomes one BadItem line."""
    file = Path(path)
    if not file.is_file():
        raise BadItem(f"{path}: no such video file; check the path")
    if file.stat().st_size == 0:
        raise BadItem(f"{path}: the file is empty; fetch it again or drop it")
    try:
        options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
        with av.open(str(file.resolve()), container_options=options) as container:
            stream = _video_stream(container, path)
            _check_size(stream, max_pixels, path)
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise BadItem(f"{path}: cannot be decoded as a video ({reason}); re-encode it or drop it") from None


def _video_stream(container: av.container.InputContainer, path: str | os.PathLike[str]) -> av.video.stream.VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the cover picture of an audio file
            return stream
    raise BadItem(f"{path}: the file has no video stream; give a video or drop it")


def _check_size(stream: av.video.stream.VideoStream, max_pixels: int, path: str | os.PathLike[str]) -> None:
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > max_pixels:
        raise BadItem(
            f"{path}: frames of {width}x{height} exceed {max_pixels} pixels; scale the video down "
            "or raise data.max_pixels"
        )
    # The decoder refuses frames that grow in mid-stream.
    stream.codec_context.options = {"max_pixels": str(max_pixels)}
    stream.codec_context.thread_count = 1  # rollout actors share the cores by processes


def _index(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, path: str | os.PathLike[str]
) -> _Index:
    """Read every packet's header and refuse a file that ends before its headers say."""
    ticks: list[int] = []
    keys: list[int] = []
    end_s = 0.0
    counted = False
    for packet in container.demux():
        if packet.is_corrupt:
            raise _truncated(path, f"damaged after {end_s:.1f} s")
        if packet.pts is not None and packet.time_base is not None:
            end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        if packet.stream_index != stream.index or not packet.size or packet.is_discard:
            continue
        tick = _clock(packet.pts, packet.dts, len(ticks))
        counted = counted or (packet.pts is None and packet.dts is None)
        ticks.append(tick)
        if packet.is_keyframe:
            keys.append(tick)
    if not ticks:
        raise BadItem(f"{path}: the video stream has no frames; fetch it again or drop it")
    promised = 0.0 if container.duration is None else container.duration / av.time_base
    start = 0.0 if container.start_time is None else container.start_time / av.time_base
    if end_s and end_s - start < 0.9 * promised - 1.0:
        raise _truncated(path, f"ends after {end_s - start:.1f} of {promised:.1f} s")
    ticks.sort()
    keys.sort()
    tick_s, frame_s = _rates(stream, ticks, counted)
    return _Index(ticks, keys, tick_s, frame_s, counted)


def _truncated(path: str | os.PathLike[str], what: str) -> BadItem:
    return BadItem(f"{path}: the video is truncated ({what}); fetch it again or drop it")


def _clock(pts: int | None, dts: int | None, count: int) -> int:
    """Presentation tick; decoding tick or running count where the container stores none (AVI, raw streams)."""
    if pts is not None:
        return pts
    return dts if dts is not None else count


def _rates(stream: av.video.stream.VideoStream, ticks: list[int], counted: bool) -> tuple[float, float]:
    """Seconds per tick and mean seconds per frame."""
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    tick_s = float(stream.time_base) if stream.time_base and not counted else 1 / (rate or 25.0)
    span = (ticks[-1] - ticks[0]) * tick_s
    if len(ticks) > 1 and span > 0:
        return tick_s, span / (len(ticks) - 1)
    return tick_s, 1 / rate if rate else 1.0


def _spread(ticks: list[int], count: int) -> list[int]:
    """The frames nearest to ``count`` evenly spaced times from first to last."""
    times = np.asarray(ticks, dtype=np.float64)
    targets = np.linspace(times[0], times[-1], count)
    after = np.clip(np.searchsorted(times, targets), 1, max(len(ticks) - 1, 1))
    after = np.minimum(after, len(ticks) - 1)
    before = np.maximum(after - 1, 0)
    nearest = np.where(targets - times[before] <= times[after] - targets, before, after)
    return [ticks[i] for i in nearest]


class _SeekMissedError(Exception):
    """The container's seek landed behind the target, as MPEG-TS may: the stream is decoded in order instead."""


def _decode_afresh(
    path: str | os.PathLike[str], max_pixels: int, index: _Index, wanted: list[int], *, seeking: bool
) -> dict[int, NDArray[np.uint8]]:
    """The pictures shown at the wanted ticks, from a newly opened file (not every container rewinds).

    A packet without a picture of its own (second field, hidden frame) gives the next picture, at
    the end of the stream the last one.
    """
    targets = sorted(set(wanted))
    pictures: dict[int, NDArray[np.uint8]] = {}
    last: av.VideoFrame | None = None
    size: tuple[int, int] | None = None  # where the resolution changes in mid-stream, the first one holds
    with _opened(path, max_pixels) as (container, stream):
        for tick, frame in _shown(container, stream, index, targets, seeking):
            last = frame
            size = size or _held_size(frame)
            reached = bisect.bisect_right(targets, tick)
            for target in targets[len(pictures) : reached]:
                pictures[target] = _picture(frame, size, path)
        if last is None or size is None:
            raise BadItem(f"{path}: no frame could be decoded; re-encode it or drop it")
        for target in targets[len(pictures) :]:
            pictures[target] = _picture(last, size, path)
    return pictures


def _shown(
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    index: _Index,
    targets: list[int],
    seeking: bool,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Decoded frames with their ticks up to the last target, jumping to key frames in between."""
    count = reached = 0
    frames = iter(container.decode(stream))
    sought = False
    while reached < len(targets):
        frame = next(frames, None)
        tick = None if frame is None else _clock(frame.pts, frame.dts, count)
        if sought and (tick is None or tick > targets[reached]):
            raise _SeekMissedError
        if frame is None or tick is None:
            return
        yield tick, frame
        count += 1
        reached = bisect.bisect_right(targets, tick)
        sought = seeking and reached < len(targets) and _key_between(index, tick, targets[reached])
        if sought:
            container.seek(targets[reached], stream=stream, backward=True)
            frames = iter(container.decode(stream))


def _key_between(index: _Index, position: int, target: int) -> bool:
    """Whether a key frame lies between the frame just decoded and the target."""
    nearest = bisect.bisect_right(index.keys, target) - 1
    return nearest >= 0 and index.keys[nearest] > position


def _held_size(frame: av.VideoFrame) -> tuple[int, int]:
    """(width, height) that a video's pictures are held at, by its first one."""
    shrink = min(1.0, (HELD_PIXELS / (frame.width * frame.height)) ** 0.5)
    return max(1, round(frame.width * shrink)), max(1, round(frame.height * shrink))


def _picture(frame: av.VideoFrame, size: tuple[int, int], path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 RGB, upright."""
    width, height = size
    picture = frame.reformat(width=width, height=height, format="rgb24", interpolation="AREA").to_ndarray()
    if frame.rotation % 90:
        raise BadItem(f"{path}: stored rotation of {frame.rotation} degrees; re-encode it upright")
    return np.ascontiguousarray(np.rot90(picture, frame.rotation // 90))
