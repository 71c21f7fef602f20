"""Memory of this process."""

import threading
import time
from types import TracebackType
from typing import Self

import psutil


def held_bytes() -> int:
    """Resident bytes of this process alone: what it has mapped of the object store is left out."""
    memory = psutil.Process().memory_info()
    return int(memory.rss - memory.shared)


class PeakMemory:
    """The most bytes held within the block, above those held before it; looked at every 10 ms."""

    def __enter__(self) -> Self:
        self._before = self._most = held_bytes()
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
            self._most = max(self._most, held_bytes())
            time.sleep(0.01)
