"""Small video files for tests, written with PyAV."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

TICK = Fraction(1, 1000)


def grey_levels(count: int) -> list[int]:
    """Well separated grey levels, one a frame, that survive H.264."""
    return [16 + 200 * i // max(count - 1, 1) for i in range(count)]


def write_video(
    path: Path,
    levels: Sequence[int],
    *,
    size: tuple[int, int] = (64, 48),
    milliseconds: Sequence[int] | None = None,
    key_every: int = 12,
    codec: str = "libx264",
    b_frames: int = 2,
    options: dict[str, str] | None = None,
) -> Path:
    """One flat grey frame per level; ``milliseconds`` gives each frame's time (default: 10 a second)."""
    times = list(milliseconds) if milliseconds is not None else [100 * i for i in range(len(levels))]
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.gop_size = key_every
        stream.codec_context.time_base = TICK
        stream.codec_context.max_b_frames = b_frames
        for level, time in zip(levels, times, strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), level, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, TICK
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_audio(path: Path) -> Path:
    """A second of silence, no video stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path
