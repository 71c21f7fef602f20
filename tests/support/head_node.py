"""A Ray cluster as an operator starts one: a head node in processes of its own, beside the tests' cluster."""

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.ports import free_port
from tests.support.waiting import wait_until

BIN = Path(sys.executable).parent
START_S = 200.0
WITHOUT_TOKEN = {"RAY_AUTH_MODE": "disabled"}  # whatever token lies at home


@contextmanager
def head_node(folder: Path, environment: Mapping[str, str], **options: object) -> Iterator[tuple[psutil.Process, str]]:
    """The head's process and its address; ``options`` of `ray start` beside those that keep it apart from others."""
    port = options.get("port", free_port())
    session = f"/tmp/{secrets.token_hex(4)}"  # Ray's sockets need short paths
    apart = {
        "port": port,
        "ray_client_server_port": free_port(),
        "temp_dir": session,
        "num_cpus": 4,
        "object_store_memory": 256 << 20,
    }
    command = [str(BIN / "ray"), "start", "--head", "--block", "--disable-usage-stats"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in (apart | options).items()]
    with (folder / "log").open("w") as log:
        head = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: "Ray runtime started" in (folder / "log").read_text(), START_S)
        yield psutil.Process(head.pid), f"127.0.0.1:{port}"
    finally:
        for process in [*psutil.Process(head.pid).children(recursive=True), head]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        head.wait()
        shutil.rmtree(session, ignore_errors=True)
