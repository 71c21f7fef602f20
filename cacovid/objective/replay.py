"""A replay buffer of handles, bounded in bytes and in items."""

from collections import OrderedDict
from typing import Generic, TypeVar

import torch

from cacovid.errors import UserError

Value = TypeVar("Value")


class ReplayBuffer(Generic[Value]):
    """First in, first out, within both bounds; values are held by reference, never copied.

    Bytes are what the owner says an entry keeps alive (an item's embeddings are 0.15 MB in the embedded
    benchmark but 45 MB at 7B shape), so the bound in bytes is the one that matters at scale.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self.max_items = max_items
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._entries: OrderedDict[str, tuple[int, Value]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def values(self) -> list[Value]:
        """From oldest to newest."""
        return [value for _, value in self._entries.values()]

    def add(self, id: str, nbytes: int, value: Value) -> None:
        """Append a value as the newest (replacing one of the same id); the oldest leave until both bounds hold.

        Raises UserError when the value alone exceeds the bound in bytes.
        """
        if nbytes > self.max_bytes:
            raise UserError(
                f"one question needs {nbytes} bytes in the replay buffer, its bound is {self.max_bytes}: "
                "raise objective.replay_bytes or set it to 0 for no replay"
            )
        if id in self._entries:
            self._remove(id)
        while self._entries and (len(self) >= self.max_items or self.nbytes + nbytes > self.max_bytes):
            self._remove(next(iter(self._entries)))
        self._entries[id] = (nbytes, value)
        self.nbytes += nbytes

    def draw(self, count: int, generator: torch.Generator) -> list[Value]:
        """Up to ``count`` distinct values, uniformly; fewer only while the buffer holds fewer."""
        values = self.values()
        order = torch.randperm(len(values), generator=generator)[:count]
        return [values[index] for index in order.tolist()]

    def clear(self) -> None:
        """Drop everything."""
        self._entries.clear()
        self.nbytes = 0

    def _remove(self, id: str) -> None:
        nbytes, _ = self._entries.pop(id)
        self.nbytes -= nbytes
