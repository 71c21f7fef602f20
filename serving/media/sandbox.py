"""Reads videos in processes that can be killed: a hang, a crash or greed ends one process, not the service.

    Sandbox.read --- one end of a socket pair ---> template --fork--> decoding process, shut in
        |          <-- pidfd, to kill it by -------                        | waits for its video
        | --- DecodingJob, location -------------------------------------> | fetches and decodes
        | <-- JSON head and raw frames of a chunk, or a refusal ---------- | decodes the next chunk, ends after the last

One waits already when a video comes. Forking from a template that is single-threaded and warm takes milliseconds;
forking the replica itself would copy its threads' locks and its secrets.
"""

import asyncio
import json
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.config import MediaConfig
from serving.errors import ApiError, bad_video, overloaded, room_on_disk
from serving.media.job import HEAD, DecodingJob
from serving.media.records import Clip, VideoInput

logger = logging.getLogger("cacovid.serving.media")

TEMPLATE = "serving.media.template"
_MAX_HEAD = 1 << 20


@dataclass(frozen=True)
class _Process:
    """A decoding process."""

    link: socket.socket
    handle: int  # a pidfd

    def has_ended(self) -> bool:
        return bool(select.select([self.handle], [], [], 0)[0])

    def end(self) -> None:
        """Kill it if it still runs."""
        self.link.close()
        with suppress(ProcessLookupError):  # it has ended by itself
            signal.pidfd_send_signal(self.handle, signal.SIGKILL)
        os.close(self.handle)


class Sandbox:
    """Decoding processes of one service replica; at most ``config.concurrent_jobs`` at a time.

    Each video gets a process of its own, forked from a template beforehand where it can be, and gone afterwards.
    Use from one event loop; ``close()`` ends all processes.
    """

    def __init__(self, config: MediaConfig, default_frames: int, retry_after_s: int = 2) -> None:
        self._config = config
        self._default_frames = default_frames
        self._retry_after_s = retry_after_s
        self._running = asyncio.Semaphore(config.concurrent_jobs)
        self._starting = asyncio.Lock()
        self._held = 0
        self._template: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._waiting: _Process | None = None
        self._making: asyncio.Task[None] | None = None

    @property
    def held(self) -> int:
        """Videos that are read or wait."""
        return self._held

    async def read(self, video: VideoInput) -> Clip:
        """Fetch and decode one video.

        Raises:
            ApiError: 422 for a video that cannot be used, 503 where too many wait.
        """
        if self._held >= self._config.concurrent_jobs + self._config.waiting_jobs:
            raise overloaded("too many videos are being read", self._retry_after_s)
        with room_on_disk():
            folder = tempfile.mkdtemp(prefix="cacovid-media-")
        self._held += 1
        try:
            async with self._running:
                return await self._run(DecodingJob(video, folder, self._default_frames))
        finally:
            self._held -= 1
            shutil.rmtree(folder, ignore_errors=True)

    async def check(self) -> None:
        """Fork a process that ends at once; the template is started where there is none.

        Raises:
            RuntimeError: no process can be had; the template's own words are on stderr.
        """
        ours, theirs = socket.socketpair()
        with ours, theirs:
            try:
                os.close(await self._fork(theirs))
            except (EOFError, OSError) as error:
                raise RuntimeError("no decoding process can be started") from error

    def close(self) -> None:
        """End the template and with it every decoding process."""
        if self._waiting is not None:
            self._waiting.end()
            self._waiting = None
        self._end_template()

    def _end_template(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._template is not None:
            self._template.kill()
            self._template.wait()
            self._template = None

    async def _run(self, job: DecodingJob) -> Clip:
        process = await self._next()
        try:
            async with asyncio.timeout(self._config.job_timeout_s):
                return await self._exchange(process.link, job)
        except TimeoutError:
            limit = self._config.job_timeout_s
            raise bad_video("video_timeout", f"the video could not be read within {limit:.0f} s") from None
        except (EOFError, ConnectionError):
            logger.warning("a decoding process died (pidfd %d); its video was refused", process.handle)
            raise bad_video("unreadable_video", "the video broke its decoder or needs too much of it") from None
        finally:
            process.end()

    async def _next(self) -> "_Process":
        """A process for one video: the one that waits, or where there is none a fresh one. The next one is made."""
        process, self._waiting = self._waiting, None
        if process is not None and process.has_ended():
            process.end()
            process = None
        process = process or await self._fresh()
        if self._making is None or self._making.done():
            self._making = asyncio.create_task(self._make())
        return process

    async def _make(self) -> None:
        try:
            self._waiting = await self._fresh()
        except (EOFError, OSError) as error:
            logger.warning("no decoding process could be made ready (%s); the next video asks for one", error)

    async def _fresh(self) -> "_Process":
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            try:
                return _Process(ours, await self._fork(theirs))
            except BaseException:
                ours.close()
                raise

    async def _exchange(self, link: socket.socket, job: DecodingJob) -> Clip:
        loop = asyncio.get_running_loop()
        head = job.head()
        location = job.video.location.encode()
        for part in (head, location):
            await loop.sock_sendall(link, len(part).to_bytes(HEAD, "big"))
            await loop.sock_sendall(link, part)
        return await _clip(link, self._config)

    async def _fork(self, link: socket.socket) -> int:
        """A pidfd of a new child of the template, which is started afresh if it has died."""
        async with self._starting:
            asked = asyncio.create_task(asyncio.to_thread(self._request_fork, link))
            try:
                return await asyncio.shield(asked)
            except asyncio.CancelledError:
                # The answer is taken off the socket all the same: the next request would get this one's process.
                with suppress(EOFError, OSError):
                    os.close(await asked)
                raise

    def _request_fork(self, link: socket.socket) -> int:
        try:
            return self._forked(link)
        except (EOFError, OSError):  # the template has died meanwhile
            self._end_template()
            return self._forked(link)

    def _forked(self, link: socket.socket) -> int:
        if self._template is None or self._template.poll() is not None or self._control is None:
            self._end_template()
            self._start()
        assert self._control is not None
        socket.send_fds(self._control, [b"1"], [link.fileno()])
        _, handles, _, _ = socket.recv_fds(self._control, 1, 1)
        if not handles:
            raise EOFError
        return handles[0]

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # An environment of its own: no tokens, no proxies.
        environment = {
            "PATH": os.defpath,
            "LANG": "C.UTF-8",
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        with theirs:
            self._template = subprocess.Popen(
                [sys.executable, "-m", TEMPLATE, str(theirs.fileno()), self._config.model_dump_json()],
                env=environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        ours.settimeout(60.0)
        self._control = ours


async def _clip(link: socket.socket, config: MediaConfig) -> Clip:
    """The frames, chunk by chunk. A lying decoder is refused."""
    head = await _head(link)
    frames, chunk = _room(head["shape"], config)
    timestamps: list[float] = []
    while True:
        told = head["timestamps"]
        part = frames[len(timestamps) : len(timestamps) + len(told)]
        if not 0 < len(told) == len(part):
            raise EOFError
        await _fill(link, part.data.cast("B"))
        timestamps += map(float, told)
        if len(timestamps) == len(frames):
            break
        head = await _head(link)
    return Clip(
        frames=frames,
        timestamps=tuple(timestamps),
        duration_s=float(head["duration_s"]),
        fps=float(head["fps"]),
        key=str(head["key"]),
        fetch_s=float(head["fetch_s"]),
        decode_s=float(head["decode_s"]),
        chunk=chunk,
    )


async def _head(link: socket.socket) -> dict[str, Any]:
    size = int.from_bytes(await _exactly(link, HEAD), "big")
    if size > _MAX_HEAD:
        raise EOFError
    head: dict[str, Any] = json.loads(await _exactly(link, size))
    if "error" in head:
        raise ApiError(*head["error"])
    return head


def _room(told: Sequence[Any], config: MediaConfig) -> tuple[NDArray[np.uint8], int | None]:
    """(F, height, width, 3) bytes to fill, and the frames of a chunk: in memory, or for a clip in chunks in a file.

    The file has no name and goes with the array; its blocks are taken beforehand, for a mapped page that finds no
    room on the disk kills the process.
    """
    shape = tuple(int(side) for side in told)
    size = int(np.prod(shape, dtype=object))
    if len(shape) != 4 or shape[3] != 3 or min(shape) < 1 or size > config.max_decoded_bytes:
        raise EOFError
    if config.chunk_frames is None or shape[0] <= config.chunk_frames:
        return np.empty(shape, dtype=np.uint8), None
    with room_on_disk(), tempfile.TemporaryFile(prefix="cacovid-frames-") as file:
        os.posix_fallocate(file.fileno(), 0, size)
        # As a plain array: one that knows of its file is pickled in one piece, with a copy.
        return np.asarray(np.memmap(file, dtype=np.uint8, mode="r+", shape=shape)), config.chunk_frames


async def _exactly(link: socket.socket, count: int) -> bytes:
    buffer = bytearray(count)
    await _fill(link, memoryview(buffer))
    return bytes(buffer)


async def _fill(link: socket.socket, view: memoryview) -> None:
    loop = asyncio.get_running_loop()
    while view:
        got = await loop.sock_recv_into(link, view)
        if not got:
            raise EOFError
        view = view[got:]
