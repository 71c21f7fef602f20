"""Many videos, each opened once, by several processes.

paths ──a few at a time──► processes: decode, hash ──► facts or the reason why not, by path
"""

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from typing import TypeAlias

from cacovid.data.content import content_key
from cacovid.data.likeness import frame_hashes
from cacovid.data.video import read_frames
from cacovid.errors import BadItem

_AHEAD = 4  # videos given out for each process


@dataclass(frozen=True)
class VideoFacts:
    """A video that decodes."""

    width: int  # of a frame, in pixels, as it is watched
    height: int
    duration_s: float
    content: str  # hash of its bytes
    hashes: tuple[int, ...]  # of its pictures


Examined: TypeAlias = VideoFacts | str  # or the reason why it cannot be used
Examine: TypeAlias = Callable[[str, int, int], Examined]


def examine(path: str, frames: int, max_pixels: int) -> Examined:
    """Decode ``frames`` frames of one video."""
    try:
        video = read_frames(path, frames, max_pixels)
        height, width = video.frames.shape[1:3]
        return VideoFacts(width, height, video.duration_s, content_key(path), frame_hashes(video.frames))
    except BadItem as error:
        return str(error)


def examine_all(
    paths: Sequence[str],
    frames: int,
    max_pixels: int,
    workers: int,
    progress: Callable[[int, int], None],
    each: Examine = examine,
) -> dict[str, Examined]:
    """Examine all ``paths``; one whose decoding ends its process is named, and the others go on.

    Args:
        workers: processes.
        progress: called with videos done and in all.
        each: what is done with one; at the top of a module.
    """
    found: dict[str, Examined] = {}
    queue = iter(paths)
    pool, running = _pool(workers), dict[Future[Examined], str]()
    try:
        while True:
            for path in islice(queue, _AHEAD * workers - len(running)):
                running[pool.submit(each, path, frames, max_pixels)] = path
            if not running:
                return found
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                pool.shutdown()
                found |= {path: _alone(each, path, frames, max_pixels) for path in running.values()}
                pool, running = _pool(workers), {}
            else:
                found |= {running.pop(future): future.result() for future in done}
            progress(len(found), len(paths))
    finally:
        pool.shutdown(cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))  # a fork would copy the locks of other threads


def _alone(each: Examine, path: str, frames: int, max_pixels: int) -> Examined:
    """One video in a process of its own."""
    with _pool(1) as pool:
        try:
            return pool.submit(each, path, frames, max_pixels).result()
        except BrokenProcessPool:
            return f"{path}: decoding it ends the process (out of memory, or a fault of the decoder); drop it"
