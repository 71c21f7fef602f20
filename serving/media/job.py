"""One decoding process: reads a job from its socket, answers with frames or a refusal, ends.

The answer is a JSON line and raw bytes for each chunk of frames, never a pickle: whoever has taken over a decoder by
a crafted video can send wrong pixels, but run nothing outside.
"""

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.config import MediaConfig
from serving.errors import ApiError, bad_video
from serving.media.decode import Reading, decode_file, decode_jpegs, no_memory
from serving.media.fetch import copy_local, fetch_https, save_base64
from serving.media.records import Sampling, VideoInput

HEAD = 8  # bytes of a length prefix


@dataclass(frozen=True)
class DecodingJob:
    """What a decoding process is to do."""

    video: VideoInput
    folder: str  # its own, empty, removed afterwards by whoever made it
    default_frames: int

    def head(self) -> bytes:
        """Everything but the video's location, as JSON."""
        fields = {
            "kind": self.video.kind,
            "sampling": asdict(self.video.sampling),
            "folder": self.folder,
            "default_frames": self.default_frames,
        }
        return json.dumps(fields).encode()

    @classmethod
    def parse(cls, head: bytes, location: bytes) -> "DecodingJob":
        """The inverse of :meth:`head`."""
        fields: dict[str, Any] = json.loads(head)
        video = VideoInput(fields["kind"], location.decode(), Sampling(**fields["sampling"]))
        return cls(video, fields["folder"], fields["default_frames"])


def run(link: socket.socket, config: MediaConfig) -> None:
    """What a decoding process does: wait for its job, and answer."""
    job = DecodingJob.parse(receive(link), receive(link))
    try:
        for head, frames in _chunks(job, config):
            send(link, json.dumps(head).encode())
            link.sendall(frames.data.cast("B"))
    except ApiError as error:
        send(link, json.dumps({"error": list(error.args)}).encode())
    except MemoryError:
        send(link, json.dumps({"error": list(no_memory().args)}).encode())


def _chunks(job: DecodingJob, config: MediaConfig) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8]]]:
    """What is told of each chunk, and its frames."""
    started = time.perf_counter()
    reading, key, fetched = _read(job, config)
    sizes = set()
    for video in reading.chunks:
        sizes.add(video.frames.shape[1:])
        if len(sizes) > 1:
            raise bad_video("mixed_sizes", "the size of the video's frames changes; re-encode it to one size")
        head = {
            "shape": [reading.count, *video.frames.shape[1:]],  # of all chunks together
            "timestamps": list(video.timestamps),  # of this one
            "duration_s": video.duration_s,
            "fps": video.fps,
            "key": f"{key}/{reading.count}",
            "fetch_s": fetched - started,
            "decode_s": time.perf_counter() - fetched,
        }
        yield head, np.ascontiguousarray(video.frames)


def _read(job: DecodingJob, config: MediaConfig) -> tuple[Reading, str, float]:
    """The video, a hash of its bytes, and when they were here."""
    video = job.video
    if video.kind == "frames":
        fetched = time.perf_counter()
        reading, key = decode_jpegs(video.location, video.sampling, job.default_frames, config)
        return reading, key, fetched
    target = Path(job.folder) / "video"
    if video.kind == "data":
        key = save_base64(video.location, target, config.max_bytes)
    elif video.kind == "https":
        key = fetch_https(video.location, target, config)
    else:
        key = copy_local(video.location, target, config)
    fetched = time.perf_counter()
    return decode_file(target, video.sampling, job.default_frames, config), key, fetched


def send(link: socket.socket, content: bytes) -> None:
    """Send one length-prefixed message."""
    link.sendall(len(content).to_bytes(HEAD, "big"))
    link.sendall(content)


def receive(link: socket.socket) -> bytes:
    """Receive one; raises EOFError where the other side has gone."""
    return _exactly(link, int.from_bytes(_exactly(link, HEAD), "big"))


def _exactly(link: socket.socket, count: int) -> bytes:
    buffer = bytearray(count)
    view = memoryview(buffer)
    while view:
        got = link.recv_into(view)
        if not got:
            raise EOFError
        view = view[got:]
    return bytes(buffer)
