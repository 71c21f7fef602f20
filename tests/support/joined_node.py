"""A node that joins a Ray cluster as an operator lets it: `ray start --block`."""

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.head_node import BIN, START_S
from tests.support.waiting import wait_until


@contextmanager
def joined_node(
    folder: Path,
    address: str,
    *,
    inside: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    **options: object,
) -> Iterator[psutil.Process]:
    """The process of a node that has joined; it and all below it end with the block.

    Args:
        folder: For its output.
        inside: A command that runs the node's, say in a network namespace.
        options: Of `ray start`.
    """
    own = {"address": address, "num_cpus": 1, "object_store_memory": 256 << 20, "labels": "role=rollout"}
    command = [*inside, str(BIN / "ray"), "start", "--block", "--disable-usage-stats"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in (own | options).items()]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("w") as log:
        node = subprocess.Popen(
            command, env=os.environ | (environment or {}), stdout=log, stderr=log, start_new_session=True
        )

    def joined() -> bool:
        text = (folder / "log").read_text()
        assert node.poll() is None, text
        return "Ray runtime started" in text

    try:
        wait_until(joined, START_S)
        yield psutil.Process(node.pid)
    finally:
        if node.poll() is None:
            for process in [*psutil.Process(node.pid).children(recursive=True), psutil.Process(node.pid)]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        node.wait()
