"""The process that decoding processes are forked from: it has imported what they need and nothing else.

Run as ``python -m serving.media.template FD`` with a SOCK_SEQPACKET socket as FD. For each socket that it
is handed it forks a child, and hands back a pidfd, by which the child can be killed whatever its pid has
become. It holds no secrets: its environment is made for it.
"""

import os
import signal
import socket
import sys

import numpy as np  # noqa: F401  imported here, so that children need not
import PIL.JpegImagePlugin  # noqa: F401
import urllib3  # noqa: F401

from serving.media import job


def serve(control: socket.socket) -> None:
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
            _child(links[0])
        os.close(links[0])
        # The child lives: it waits for its job, which is sent after the pidfd has arrived.
        handle = os.pidfd_open(pid)
        socket.send_fds(control, [b"1"], [handle])
        os.close(handle)


def _child(descriptor: int) -> None:
    status = 1
    try:
        with socket.socket(fileno=descriptor) as link:
            job.run(link)
            link.shutdown(socket.SHUT_WR)
        status = 0
    except (EOFError, BrokenPipeError):
        pass  # nobody waits for the answer any more
    finally:
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
