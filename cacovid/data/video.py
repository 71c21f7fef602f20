"""Sampled frames of a video, whatever holds it: a file, or a folder of pictures.

    path ──VideoFile | FrameFolder──► timeline ──segment──► spread evenly ──► pictures at those ticks ──► DecodedVideo

Shape legend: n sampled frames.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cacovid.data.frame_folder import FrameFolder
from cacovid.data.pictures import Source
from cacovid.data.video_file import VideoFile
from cacovid.limits import MAX_PIXELS


@dataclass(frozen=True)
class DecodedVideo:
    """Frames sampled evenly over the presentation time of a video or of a segment of it, upright."""

    frames: NDArray[np.uint8]  # (n, height, width, 3) RGB
    timestamps: tuple[float, ...]  # (n,) seconds after the first frame of the whole video
    duration_s: float  # presentation time of what was sampled
    fps: float  # rate of the *sampled* frames, n / duration_s


@dataclass(frozen=True)
class VideoInfo:
    """What the headers of a video say, before anything is decoded."""

    width: int
    height: int
    num_frames: int
    duration_s: float


def read_frames(
    path: str | os.PathLike[str],
    num_frames: int,
    max_pixels: int = MAX_PIXELS,
    *,
    fps: float | None = None,
    start: float | None = None,
    end: float | None = None,
) -> DecodedVideo:
    """``num_frames`` frames spread evenly from the first to the last one.

    A video with fewer frames repeats them, a 1-frame clip its only one. Rotation stored in the file is applied.
    Frames above 1080p's area are scaled down, so that memory stays bounded.

    Args:
        path: A video file, or a folder with one picture a frame (:class:`FrameFolder`).
        num_frames: How many; with ``fps`` at most so many.
        max_pixels: Larger frames are refused before decoding.
        fps: Sample so many frames a second instead.
        start: Seconds after the first frame from which on to sample; None: from the first.
        end: And until when; None, or behind the end: to the last.

    Raises:
        BadItem: no such file, not a video, no video stream, truncated, no frames, more than
            ``max_pixels`` pixels a frame, an undecodable frame, or a segment outside the video.
    """
    source = _open(path, max_pixels)
    watched = source.timeline.segment(start, end, path)
    wanted = watched.spread(watched.count(num_frames, fps))
    frames = source.pictures(wanted)
    seconds = tuple(watched.seconds(tick) for tick in wanted)
    return DecodedVideo(frames, seconds, watched.duration_s, len(wanted) / watched.duration_s)


def read_in_chunks(
    path: str | os.PathLike[str], num_frames: int, chunk: int, max_pixels: int = MAX_PIXELS
) -> tuple[Iterator[DecodedVideo], float]:
    """The frames of :func:`read_frames`, ``chunk`` at a time, with the memory of one chunk; and their rate.

    Raises:
        BadItem: As :func:`read_frames`; of a frame, when its chunk comes.
    """
    source = _open(path, max_pixels)
    wanted = source.timeline.spread(num_frames)
    return _chunks(source, wanted, chunk), len(wanted) / source.timeline.duration_s


def _chunks(source: Source, wanted: list[int], chunk: int) -> Iterator[DecodedVideo]:
    timeline = source.timeline
    for start in range(0, len(wanted), chunk):
        ticks = wanted[start : start + chunk]
        seconds = tuple(timeline.seconds(tick) for tick in ticks)
        yield DecodedVideo(source.pictures(ticks), seconds, timeline.duration_s, len(wanted) / timeline.duration_s)


def read_some(
    path: str | os.PathLike[str], num_frames: int, chosen: Sequence[int], max_pixels: int = MAX_PIXELS
) -> DecodedVideo:
    """The ``chosen`` ones, ascending, of the frames of :func:`read_frames`. Raises :class:`BadItem` as that."""
    source = _open(path, max_pixels)
    wanted = source.timeline.spread(num_frames)
    return next(_chunks(source, [wanted[place] for place in chosen], len(chosen)))


def probe_video(path: str | os.PathLike[str], max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """Size, length and frame count from the headers alone; raises :class:`BadItem` as :func:`read_frames`."""
    source = _open(path, max_pixels)
    return VideoInfo(source.width, source.height, len(source.timeline.ticks), source.timeline.duration_s)


def _open(path: str | os.PathLike[str], max_pixels: int) -> Source:
    return FrameFolder(path, max_pixels) if Path(path).is_dir() else VideoFile(path, max_pixels)
