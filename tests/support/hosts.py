"""Hosts of their own on this machine: an address and a link that can be cut, or little memory. They need root."""

import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.waiting import wait_until

MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")


@dataclass(frozen=True)
class Host:
    """A network namespace with one link to this machine's own network."""

    name: str
    address: str
    inside: tuple[str, ...]  # what a command is to be run by, to run there
    link: str  # this machine's end

    def cut(self) -> None:
        """Nothing gets through any more, and nobody is told."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """As before."""
        _ip("link", "set", self.link, "up")


@contextmanager
def host() -> Iterator[Host]:
    """A host that sees this machine, and whom this machine sees."""
    if os.geteuid() != 0:
        pytest.skip("hosts of their own need root")
    name, subnet = f"host-{secrets.token_hex(3)}", f"10.213.{secrets.randbelow(250)}"
    here, there = f"h-{name[5:]}", f"n-{name[5:]}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        _ip("address", "add", f"{subnet}.1/30", "dev", here)
        _ip("link", "set", here, "up")
        for arguments in (
            ("address", "add", f"{subnet}.2/30", "dev", there),
            ("link", "set", there, "up"),
            ("link", "set", "lo", "up"),
            ("route", "add", "default", "via", f"{subnet}.1"),
        ):
            _ip("-netns", name, *arguments)
        yield Host(name, f"{subnet}.2", ("ip", "netns", "exec", name), here)
    finally:
        _ip("netns", "delete", name)  # and the link with it


@contextmanager
def small_memory(limit: int) -> Iterator[tuple[str, ...]]:
    """What a command is to be run by to see no more than ``limit`` bytes of memory, as a container does."""
    group = MEMORY_GROUPS / f"small-{secrets.token_hex(3)}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no memory groups here: {error}")
    try:
        (group / "memory.limit_in_bytes").write_text(str(limit))
        enter = f'mount --bind {group} {MEMORY_GROUPS} && echo $$ > {MEMORY_GROUPS}/cgroup.procs && exec "$@"'
        yield ("unshare", "--mount", "sh", "-c", enter, "sh")
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        wait_until(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True)
