"""A video file, decoded with PyAV.

The clock of every frame comes first, without decoding, so that frames are chosen by presentation time whatever the
frame rate does: from the file's own index where that says it all (MP4 with a constant rate), else from the headers of
all packets. Then just the chosen frames are decoded, jumping over key frames where one lies between. Memory holds the
chosen frames alone.
"""

import bisect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import av.container
import av.video.stream
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from cacovid.data.pictures import Picture, Pictures, check_size, held_size
from cacovid.data.timeline import Timeline
from cacovid.errors import BadItem

# Playlists (HLS, DASH, concat) may name other files or hosts; they are no video files to us.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,h264,hevc,ivf,m4v"


@dataclass(frozen=True)
class _Index:
    """Which frames a stream has, before one is decoded."""

    timeline: Timeline
    keys: list[int]  # ascending, ticks of key frames
    counted: bool  # the stream stores no times: ticks are running numbers, and it cannot be sought in


class VideoFile:
    """Opened: the clock and the size are known.

    Raises:
        BadItem: no such file, not a video, no video stream, truncated, no frames, or frames of more than
            ``max_pixels`` pixels.
    """

    def __init__(self, path: str | os.PathLike[str], max_pixels: int) -> None:
        self.path = path
        self.max_pixels = max_pixels
        with _opened(path, max_pixels) as (container, stream):
            self.width, self.height = stream.codec_context.width, stream.codec_context.height
            self._index = _own_index(container, stream, path) or _scanned_index(container, stream, path)
        self.timeline = self._index.timeline

    def pictures(self, wanted: list[int]) -> Pictures:
        """The pictures shown at the wanted ticks, which ascend.

        Raises:
            BadItem: a frame that cannot be decoded.
        """
        try:
            return _decode_afresh(self.path, self.max_pixels, self._index, wanted, seeking=not self._index.counted)
        except _SeekMissedError:
            return _decode_afresh(self.path, self.max_pixels, self._index, wanted, seeking=False)


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
            check_size(stream.codec_context.width, stream.codec_context.height, max_pixels, path)
            # The decoder refuses frames that grow in mid-stream.
            stream.codec_context.options = {"max_pixels": str(max_pixels)}
            stream.codec_context.thread_count = 1  # rollout actors share the cores by processes
            yield container, stream
    except (av.error.FFmpegError, OSError) as error:
        reason = error.strerror or type(error).__name__
        raise BadItem(f"{path}: cannot be decoded as a video ({reason}); re-encode it or drop it") from None


def _video_stream(container: av.container.InputContainer, path: str | os.PathLike[str]) -> av.video.stream.VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # the cover picture of an audio file
            return stream
    raise BadItem(f"{path}: the file has no video stream; give a video or drop it")


def _own_index(
    container: av.container.InputContainer, stream: av.video.stream.VideoStream, path: str | os.PathLike[str]
) -> _Index | None:
    """The index of an MP4 file with a constant frame rate, so that a long file is not read from end to end; else None.

    It holds decoding times: with a constant rate those are the presentation times, shifted.
    """
    if not hasattr(stream, "index_entries"):  # of an older PyAV: reading the file from end to end finds the same
        return None
    entries = stream.index_entries
    if "mp4" not in container.format.name or not 1 < stream.frames == len(entries) or stream.start_time is None:
        return None
    rows = [(each.timestamp, each.pos + each.size, each.is_keyframe, each.is_discard) for each in entries]
    times, ends, keys, dropped = np.asarray(rows, dtype=np.int64).T
    step = int(times[1] - times[0])
    if step <= 0 or (np.diff(times) != step).any() or dropped.any():
        return None
    if ends.max() > os.path.getsize(path):
        raise _truncated(path, "its last frame lies behind its end")
    times = times + stream.start_time - times[0]
    tick_s = float(stream.time_base)
    timeline = Timeline(times, tick_s, step * tick_s, stream.start_time)
    return _Index(timeline, times[keys == 1].tolist(), counted=False)


def _scanned_index(
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
    return _Index(Timeline(np.asarray(ticks, dtype=np.int64), tick_s, frame_s, ticks[0]), keys, counted)


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


class _SeekMissedError(Exception):
    """The container's seek landed behind the target, as MPEG-TS may: the stream is decoded in order instead."""


def _decode_afresh(
    path: str | os.PathLike[str], max_pixels: int, index: _Index, wanted: list[int], *, seeking: bool
) -> Pictures:
    """The pictures shown at the wanted ticks, from a newly opened file (not every container rewinds).

    A packet without a picture of its own (second field, hidden frame) gives the next picture, at
    the end of the stream the last one.
    """
    frames: Pictures | None = None
    filled = 0
    last: av.VideoFrame | None = None
    size: tuple[int, int] | None = None  # where the resolution changes in mid-stream, the first one holds
    reformatter = VideoReformatter()  # one for all: it takes longer to set up than to run
    with _opened(path, max_pixels) as (container, stream):
        for tick, frame in _shown(container, stream, index, wanted, seeking):
            last = frame
            size = size or held_size(frame.width, frame.height)
            reached = bisect.bisect_right(wanted, tick)
            if reached > filled:
                picture = _picture(frame, size, reformatter, path)
                frames = np.empty((len(wanted), *picture.shape), np.uint8) if frames is None else frames
                frames[filled:reached] = picture
                filled = reached
        if last is None or size is None:
            raise BadItem(f"{path}: no frame could be decoded; re-encode it or drop it")
        if filled < len(wanted):
            picture = _picture(last, size, reformatter, path)
            frames = np.empty((len(wanted), *picture.shape), np.uint8) if frames is None else frames
            frames[filled:] = picture
    assert frames is not None
    return frames


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
    sought = -1  # the target last sought for: no seek twice, wherever it landed
    landed = True  # a frame has come since the last seek
    while reached < len(targets):
        frame = next(frames, None)
        tick = None if frame is None else _clock(frame.pts, frame.dts, count)
        if not landed and (tick is None or tick > targets[reached]):
            raise _SeekMissedError
        if frame is None or tick is None:
            return
        landed = True
        yield tick, frame
        count += 1
        reached = bisect.bisect_right(targets, tick)
        if seeking and sought < reached < len(targets) and _key_between(index, tick, targets[reached]):
            container.seek(targets[reached], stream=stream, backward=True)
            frames = iter(container.decode(stream))
            sought, landed = reached, False


def _key_between(index: _Index, position: int, target: int) -> bool:
    """Whether a key frame lies between the frame just decoded and the target."""
    nearest = bisect.bisect_right(index.keys, target) - 1
    return nearest >= 0 and index.keys[nearest] > position


def _picture(
    frame: av.VideoFrame, size: tuple[int, int], reformatter: VideoReformatter, path: str | os.PathLike[str]
) -> Picture:
    """(height, width, 3) uint8 RGB, upright."""
    width, height = size
    picture = reformatter.reformat(frame, width, height, format="rgb24", interpolation="AREA").to_ndarray()
    if frame.rotation % 90:
        raise BadItem(f"{path}: stored rotation of {frame.rotation} degrees; re-encode it upright")
    return np.rot90(picture, frame.rotation // 90)
