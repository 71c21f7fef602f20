"""The process that decoding processes are forked from: it has imported what they need and nothing else.

Run as ``python -m serving.media.template FD CONFIG`` with a SOCK_SEQPACKET socket as FD and ``MediaConfig`` as
JSON. For each socket that it is handed it forks a child, and hands back a pidfd, by which the child can be killed
whatever its pid has become. It holds no secrets: its environment is made for it.
"""

import gc
import os
import signal
import socket
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import PIL.JpegImagePlugin  # noqa: F401  imported here, so that children need not
import urllib3  # noqa: F401

from cacovid.data.video import read_frames
from serving.config import MediaConfig
from serving.media import job, limits


def warm_up() -> None:
    """Read one small video, so that what decoders set up once is set up before children are forked."""
    with tempfile.TemporaryDirectory(prefix="cacovid-media-") as folder:
        clip = Path(folder) / "clip.mp4"
        _write_clip(clip)
        read_frames(clip, 2)
    threads = len(os.listdir("/proc/self/task"))
    assert threads == 1, f"{threads} threads: a fork would copy the locks of the others"


def _write_clip(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=4, options={"threads": "1", "preset": "ultrafast"})
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(2):
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def serve(control: socket.socket, config: MediaConfig) -> None:
    """Fork a child for every socket received, until the other side goes."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps; pidfds stay valid
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the service, which then closes the socket
    while True:
        _, links, _, _ = socket.recv_fds(control, 1, 1)
        if not links:
            return
        pid = os.fork()
        if pid == 0:
            control.close()
            _child(links[0], config)
        os.close(links[0])
        # The child lives: it waits for its job, which is sent after the pidfd has arrived.
        handle = os.pidfd_open(pid)
        socket.send_fds(control, [b"1"], [handle])
        os.close(handle)


def _child(descriptor: int, config: MediaConfig) -> None:
    status = 1
    try:
        limits.enter(config)
        with socket.socket(fileno=descriptor) as link:
            job.run(link, config)
            link.shutdown(socket.SHUT_WR)
        status = 0
    except (EOFError, BrokenPipeError):
        pass  # nobody waits for the answer any more
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    warm_up()
    gc.freeze()  # a child's garbage collection then copies no pages of what was imported
    serve(socket.socket(fileno=int(sys.argv[1])), MediaConfig.model_validate_json(sys.argv[2]))
