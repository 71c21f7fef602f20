"""A machine of its own for what a manifest runs: own network, processes and /mnt, so that its commands run as written.

Whatever is started in it ends with the block; nothing outside is reached, by port, process name or path.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.head_node import BIN
from tests.support.waiting import wait_until

APART = ("--net", "--pid", "--mount")
# Ray tells later processes by a file there which cluster is the newest.
FOLDERS = ("mount -t tmpfs none /mnt", "mkdir -p /tmp/ray", "mount -t tmpfs none /tmp/ray")
NETWORK = (  # loopback, and an address that nobody else can reach
    "ip link set lo up",
    "ip link add one type veth peer name other",
    "ip address add 192.0.2.1/24 dev one",
    "ip link set one up",
    "ip link set other up",
)


class Machine:
    """Commands in the namespaces of a process."""

    def __init__(self, pid: int, environment: Mapping[str, str], logs: Path) -> None:
        self._enter = ["nsenter", f"--target={pid}", *APART]
        self._environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}:/usr/sbin"} | environment
        self._logs = logs

    def start(self, *command: str, log: str, **environment: str) -> "subprocess.Popen[bytes]":
        with (self._logs / log).open("wb") as output:
            return subprocess.Popen(
                [*self._enter, *command], env=self._environment | environment, stdout=output, stderr=output
            )

    def run(self, *command: str, timeout: float = 240.0, **environment: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*self._enter, *command],
            env=self._environment | environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def log(self, name: str) -> str:
        return (self._logs / name).read_text(errors="replace")

    def wait_for(self, name: str, text: str, seconds: float = 200.0) -> None:
        wait_until(lambda: text in self.log(name), seconds)


@contextmanager
def machine(mounts: Mapping[str, Path], environment: Mapping[str, str], logs: Path) -> Iterator[Machine]:
    """A machine that sees ``mounts``: paths below /mnt, and the folders that lie there.

    Skips the test where the sandbox forbids namespaces.
    """
    if shutil.which("unshare") is None or os.geteuid() != 0:
        pytest.skip("namespaces need root and unshare")
    binds = [f"mkdir -p {target} && mount --bind {folder} {target}" for target, folder in mounts.items()]
    script = " && ".join([*FOLDERS, *binds, *NETWORK, "echo ready", "exec sleep infinity"])
    # It ends with the test, even where that is killed.
    command = [
        "setpriv",
        "--pdeathsig=KILL",
        "unshare",
        *APART,
        "--fork",
        "--mount-proc",
        "--kill-child",
        "sh",
        "-c",
        script,
    ]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() != "ready\n":
            pytest.skip(f"this sandbox has no namespaces: {holder.communicate()[1]}")
        first = Path(f"/proc/{holder.pid}/task/{holder.pid}/children").read_text().split()[0]
        yield Machine(int(first), environment, logs)
    finally:
        holder.kill()  # with the first process of the namespace, all of them
        holder.wait()
