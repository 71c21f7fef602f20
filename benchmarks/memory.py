"""Memory of this process."""

import threading
import time
from types import TracebackType
from typing import Self

import psutil


def held_bytes(children: bool = False) -> int:
    """Resident bytes of this process, or with its children's: what is mapped of files and object store is left out."""
    own = psutil.Process()
    processes = [own, *own.children(recursive=True)] if children else [own]
    return sum(map(_held, processes))


def _held(process: psutil.Process) -> int:
    try:
        memory = process.memory_info()
    except psutil.NoSuchProcess:  # a child that ended meanwhile
        return 0
    return int(memory.rss - memory.shared)


class PeakMemory:
    """The most bytes held within the block, above those held before it; looked at every 10 ms.

    Args:
        children: count this process's children too; pages that a fork shares with its parent then count twice.
    """

    def __init__(self, children: bool = False) -> None:
        self._children = children

    def __enter__(self) -> Self:
        self._before = self._most = held_bytes(self._children)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    @property
    def nbytes(self) -> int:
        """The peak."""
        return self._most - self._before

    def _look(self) -> None:
        while not self._over.is_set():
            self._most = max(self._most, held_bytes(self._children))
            time.sleep(0.01)
