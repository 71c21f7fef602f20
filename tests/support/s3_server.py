"""An S3 server on loopback (moto, in its own folder beside the other packages), and a line to it that can be cut."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pyarrow import fs

from tests.support.ports import free_port
from tests.support.waiting import wait_until

PACKAGES = Path(sys.prefix) / "s3-server"  # tests/support/s3-server.txt: they ask for other releases than ours
BUCKET = "bucket"
KEY = "AKIAFODNN7"
SECRET = "wJalrXUtnFEMI"


class S3Server:
    """A server that answers on ``port``."""

    def __init__(self, port: int) -> None:
        self.port = port

    def uri(self, folder: str, *, port: int | None = None, bucket: str = BUCKET) -> str:
        """Of a folder, as pyarrow takes it, with keys in it."""
        options = f"endpoint_override=127.0.0.1:{port or self.port}&scheme=http&region=us-east-1"
        return f"s3://{KEY}:{SECRET}@{bucket}/{folder}?{options}"

    def filesystem(self) -> fs.FileSystem:
        """All that it holds."""
        options = {"access_key": KEY, "secret_key": SECRET, "scheme": "http", "region": "us-east-1"}
        return fs.S3FileSystem(endpoint_override=f"127.0.0.1:{self.port}", allow_bucket_creation=True, **options)

    def files(self, folder: str) -> list[str]:
        """Names of all files below ``folder``."""
        selector = fs.FileSelector(f"{BUCKET}/{folder}", recursive=True, allow_not_found=True)
        found = self.filesystem().get_file_info(selector)
        return sorted(info.path.removeprefix(f"{BUCKET}/{folder}/") for info in found if info.is_file)


@contextmanager
def s3_server(**environment: str) -> Iterator[S3Server]:
    """A server with one empty bucket."""
    if not PACKAGES.is_dir():
        pytest.skip(f"no S3 server in {PACKAGES}: make setup")
    port = free_port()
    path = os.pathsep.join([str(PACKAGES), os.environ.get("PYTHONPATH", "")])
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:

        def answers() -> bool:
            assert server.poll() is None, "the S3 server ended by itself"
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                return True
            return False

        wait_until(answers)
        started = S3Server(port)
        if not environment:
            started.filesystem().create_dir(BUCKET)
        yield started
    finally:
        server.kill()
        server.wait()


class Line:
    """A TCP line to a port of loopback, which can be cut and mended; connections over it are cut with it."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._open: set[socket.socket] = set()
        self._is_cut = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._is_cut = True
        for each in list(self._open):
            self._close(each)

    def mend(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self.cut()
        self._close(self._listener)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                if self._is_cut:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open |= {near, far}
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._pass_on, args=(one, other), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        self._close(source)
        self._close(target)

    def _close(self, each: socket.socket) -> None:
        self._open.discard(each)
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()
