"""What crosses between ingress, media replicas and engines about one video.

Shape legend: F sampled frames.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

SourceKind = Literal["data", "frames", "https", "file"]


@dataclass(frozen=True)
class Sampling:
    """How many frames a request wants; both None: as many as the model was set up for."""

    num_frames: int | None = None  # -1: all that the limits allow
    fps: float | None = None
    max_frames: int | None = None  # cap of this request below the service's own


@dataclass(frozen=True)
class VideoInput:
    """One video of a request, not read yet."""

    kind: SourceKind
    location: str  # base64 text for 'data'; comma-joined base64 JPEGs for 'frames'; else the URL
    sampling: Sampling

    def __repr__(self) -> str:
        return f"VideoInput({self.kind}, {len(self.location)} characters)"  # keeps addresses out of logs


@dataclass(frozen=True, eq=False)
class Clip:
    """A video's sampled frames."""

    frames: NDArray[np.uint8]  # (F, height, width, 3) RGB; those of a clip in chunks may lie in a mapped file
    timestamps: tuple[float, ...]  # (F,) seconds after the first frame of the video
    duration_s: float
    fps: float  # of the sampled frames
    key: str  # hash of content and sampling
    fetch_s: float  # until the file was here
    decode_s: float
    chunk: int | None = None  # frames to read at a time; None: all

    def chunks(self) -> Iterator[NDArray[np.uint8]]:
        """(n, height, width, 3) frames, ``chunk`` at a time."""
        size = self.chunk or len(self.frames)
        return (self.frames[start : start + size] for start in range(0, len(self.frames), size))
