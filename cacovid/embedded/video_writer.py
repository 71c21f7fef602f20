"""H.264 MP4 files that decode to almost the drawn pixels.

Measured on clips: mean absolute error in 255 levels and size, with yuv420p 2.0 and 18 kB at CRF 4, 2.4 and
10 kB at 18, 2.9 and 8 kB at 23; with yuv444p 0.5 and 17 kB at 4. So nearly all of it is colour shared by 2x2
pixels. Every player reads yuv420p, and the embedded model, trained on both looks, answers as well from it.
"""

import io
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]

FPS = 4
CRF = 4
_KEY_FRAMES = 4  # frames from one key frame to the next


def write_mp4(target: Path | BinaryIO, frames: Frames) -> None:
    """Write frames (T, H, W, 3) uint8 RGB, H and W even, at 4 frames per second."""
    destination = str(target) if isinstance(target, Path) else target
    with av.open(destination, mode="w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # One thread and no B-frames: the same bytes everywhere and quick to decode. x264's AVX-512 code does not even
        # give the same ones twice: about one clip in a hundred differs while other threads encode.
        stream.options = {
            "crf": str(CRF),
            "preset": "veryfast",
            "g": str(_KEY_FRAMES),
            "bf": "0",
            "threads": "1",
            "x264-params": "asm=avx2",
        }
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def round_trip(frames: Frames) -> Frames:
    """The frames as a reader of the MP4 file sees them, without touching the disk."""
    buffer = io.BytesIO()
    write_mp4(buffer, frames)
    buffer.seek(0)
    with av.open(buffer) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
