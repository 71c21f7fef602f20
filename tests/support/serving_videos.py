"""Videos as clients send them, good and hostile."""

import base64
import io
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from PIL import Image

from cacovid.embedded.clips import draw_clip
from cacovid.embedded.splits import split_seeds
from cacovid.embedded.video_writer import write_mp4


@cache
def clip_bytes(place: int = 0) -> bytes:
    """A small H.264 clip of eight frames from the development split."""
    buffer = io.BytesIO()
    write_mp4(buffer, draw_clip(split_seeds("development", 1, place)[0]).frames)
    return buffer.getvalue()


def data_url(content: bytes, media_type: str = "video/mp4") -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def jpeg(size: tuple[int, int] = (96, 96), level: int = 128) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((size[1], size[0], 3), level, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def frames_url(*jpegs: bytes) -> str:
    return "data:video/jpeg;base64," + ",".join(base64.b64encode(each).decode() for each in jpegs)


def many_frames(path: Path, count: int) -> Path:
    """``count`` equal frames of 16x16 pixels, a thousand a second; encoded once, muxed often."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1000)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 16, 16, "yuv420p", 1
        packets = stream.encode(av.VideoFrame.from_ndarray(np.full((16, 16, 3), 90, np.uint8), format="rgb24"))
        content = bytes((packets or stream.encode(None))[0])
        for place in range(count):
            packet = av.Packet(content)
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = place
            packet.is_keyframe = True
            container.mux(packet)
    return path


def huge_frame(path: Path, width: int = 16_384, height: int = 16_000) -> Path:
    """A file whose header promises raw frames of a quarter of a gigapixel; it holds a few bytes of one."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("rawvideo", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "gray"
        container.start_encoding()
        packet = av.Packet(b"\x00" * 64)
        packet.stream, packet.time_base = stream, Fraction(1, 10)
        packet.pts = packet.dts = 0
        packet.is_keyframe = True
        container.mux(packet)
    return path
