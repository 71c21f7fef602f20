"""A video file, or JPEG frames, into sampled frames. Runs in a decoding process.

    file | JPEGs -> Reading: how many frames there will be, and their chunks, decoded when they are asked for

Shape legend: F sampled frames.
"""

import errno
import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cacovid.data.pictures import HELD_PIXELS
from cacovid.data.video import DecodedVideo, probe_video, read_in_chunks
from cacovid.errors import BadItem
from serving.config import MediaConfig
from serving.errors import ApiError, bad_video
from serving.media.fetch import decode_base64
from serving.media.records import Sampling
from serving.media.urls import too_large


@dataclass(frozen=True)
class Reading:
    """A video of which what its headers say is known to be good."""

    count: int  # F
    chunks: Iterator[DecodedVideo]  # of ``media.chunk_frames``; one alone where that is no less than F


def frames_wanted(sampling: Sampling, duration_s: float, source_frames: int, default: int, limit: int) -> int:
    """How many frames to sample: what the request asks for, clamped to [1, ``limit``].

    Args:
        sampling: the request's wishes; ``fps`` counts only without ``num_frames``.
        duration_s: of the video.
        source_frames: frames in the file, which is what num_frames = -1 asks for.
        default: without wishes.
        limit: the service's cap.
    """
    cap = limit if sampling.max_frames is None else min(limit, sampling.max_frames)
    wanted = default
    if sampling.num_frames is not None:
        wanted = source_frames if sampling.num_frames == -1 else sampling.num_frames
    elif sampling.fps is not None:
        wanted = round(min(sampling.fps * duration_s, float(cap)))
    return max(1, min(wanted, cap))


def decode_file(path: Path, sampling: Sampling, default_frames: int, config: MediaConfig) -> Reading:
    """Sampled frames of a video file.

    Raises:
        ApiError: not a video, damaged, or above a limit; found from the headers where they say so, else with a chunk.
    """
    try:
        info = probe_video(path, config.max_pixels)
        if info.duration_s > config.max_duration_s:
            limit = config.max_duration_s
            raise bad_video(
                "video_too_long", f"the video lasts {info.duration_s:.0f} s; at most {limit:.0f} s are taken"
            )
        if info.num_frames > config.max_source_frames:
            raise bad_video(
                "too_many_frames", f"the video holds {info.num_frames} frames; at most {config.max_source_frames}"
            )
        count = frames_wanted(sampling, info.duration_s, info.num_frames, default_frames, config.max_frames)
        _check_room(count, info.width, info.height, config)
        chunks, _ = read_in_chunks(path, count, config.chunk_frames or count, config.max_pixels)
    except BadItem as error:
        raise _spoken(error, path) from None
    return Reading(count, _speaking(chunks, path))


def _speaking(chunks: Iterator[DecodedVideo], path: Path) -> Iterator[DecodedVideo]:
    try:
        yield from chunks
    except BadItem as error:
        raise _spoken(error, path) from None


def decode_jpegs(text: str, sampling: Sampling, default_frames: int, config: MediaConfig) -> tuple[Reading, str]:
    """Sampled frames of comma-joined base64 JPEGs, one a second, and the hash of all of them.

    Raises:
        ApiError: too many, or above a limit; of different sizes or no JPEG, when their chunk comes.
    """
    parts = text.split(",")
    if len(parts) > config.max_source_frames:
        raise bad_video("too_many_frames", f"{len(parts)} frames; at most {config.max_source_frames} are taken")
    count = frames_wanted(sampling, float(len(parts)), len(parts), default_frames, config.max_frames)
    chosen = np.linspace(0, len(parts) - 1, count).round().astype(int).tolist()
    # Equal pictures at other times, and a file of these very hashes, are another video.
    digest = hashlib.blake2b(f"{len(parts)} frames ".encode(), digest_size=20)
    for place in dict.fromkeys(chosen):
        content = decode_base64(parts[place])
        if len(content) > config.max_bytes:
            raise too_large(config.max_bytes)
        digest.update(hashlib.blake2b(content, digest_size=20).digest())
    return Reading(count, _jpeg_chunks(parts, chosen, config)), digest.hexdigest()


def _jpeg_chunks(parts: list[str], chosen: list[int], config: MediaConfig) -> Iterator[DecodedVideo]:
    duration, count = float(len(parts)), len(chosen)
    size = config.chunk_frames or count
    shapes: set[tuple[int, ...]] = set()
    for start in range(0, count, size):
        places = chosen[start : start + size]
        pictures = {place: _jpeg(decode_base64(parts[place]), count, config) for place in dict.fromkeys(places)}
        shapes.update(picture.shape for picture in pictures.values())
        if len(shapes) > 1:
            raise bad_video("mixed_sizes", "the JPEG frames have different sizes; give all of them one size")
        frames = np.stack([pictures[place] for place in places])
        yield DecodedVideo(frames, tuple(map(float, places)), duration, count / duration)


def no_memory() -> ApiError:
    """422 for a video that would take more than its process may have."""
    return bad_video("video_too_large", "the video needs more memory than this service gives to one")


def _jpeg(content: bytes, count: int, config: MediaConfig) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as picture:
            width, height = picture.size
            if width * height > config.max_pixels:
                raise _huge_frame(config.max_pixels)
            _check_room(count, width, height, config)
            return np.asarray(picture.convert("RGB"))
    except Image.DecompressionBombError:
        raise _huge_frame(config.max_pixels) from None
    except (OSError, ValueError, SyntaxError):
        raise bad_video("unreadable_video", "a frame of the data URL is no readable JPEG") from None


def _huge_frame(max_pixels: int) -> ApiError:
    return bad_video("frame_too_large", f"the frames exceed {max_pixels} pixels; scale them down")


def _check_room(count: int, width: int, height: int, config: MediaConfig) -> None:
    size = count * 3 * min(width * height, HELD_PIXELS)
    if size > config.max_decoded_bytes:
        raise bad_video(
            "video_too_large",
            f"{count} frames of {width}x{height} take {size} bytes, at most {config.max_decoded_bytes}: "
            "ask for fewer frames (media_io_kwargs) or send a smaller video",
        )


def _spoken(error: BadItem, path: Path) -> ApiError:
    """The reader's own words without the path."""
    said = str(error).removeprefix(f"{path}: ")
    if os.strerror(errno.ENOMEM) in said:
        return no_memory()
    if str(path.parent) in said:
        return bad_video("unreadable_video", "the video cannot be read; re-encode it")
    code = "frame_too_large" if "exceed" in said else "unreadable_video"
    return bad_video(code, f"the video cannot be used: {said}")
