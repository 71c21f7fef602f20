"""A replay buffer of handles, bounded in bytes and in items."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch

from cacovid.errors import UserError

Value = TypeVar("Value")


@dataclass(frozen=True)
class ReplayEntry(Generic[Value]):
    """One kept question: its value is held by reference, never copied."""

    id: str
    nbytes: int
    value: Value


class ReplayBuffer(Generic[Value]):
    """First in, first out, within both bounds.

    Bytes are what the owner says an entry keeps alive (an item's embeddings are 0.15 MB in the embedded
    benchmark but 45 MB at 7B shape), so the bound in bytes is the one that matters at scale.
    """

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self.max_items = max_items
        self.max_bytes = max_bytes
        self.nbytes = 0
        self._entries: OrderedDict[str, ReplayEntry[Value]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def ids(self) -> list[str]:
        """Ids from oldest to newest."""
        return list(self._entries)

    def add(self, id: str, nbytes: int, value: Value) -> list[ReplayEntry[Value]]:
        """Append an entry as the newest (replacing one of the same id); returns what had to leave, oldest first.

        Raises UserError when the entry alone exceeds the bound in bytes.
        """
        if nbytes > self.max_bytes:
            raise UserError(
                f"one question needs {nbytes} bytes in the replay buffer, its bound is {self.max_bytes}: "
                "raise objective.replay_bytes or set it to 0 for no replay"
            )
        evicted = [self._remove(id)] if id in self._entries else []
        while self._entries and (len(self) >= self.max_items or self.nbytes + nbytes > self.max_bytes):
            evicted.append(self._remove(next(iter(self._entries))))
        self._entries[id] = ReplayEntry(id, nbytes, value)
        self.nbytes += nbytes
        return evicted

    def draw(self, count: int, generator: torch.Generator) -> list[ReplayEntry[Value]]:
        """Up to ``count`` distinct entries, uniformly; fewer only while the buffer holds fewer."""
        entries = list(self._entries.values())
        order = torch.randperm(len(entries), generator=generator)[:count]
        return [entries[index] for index in order.tolist()]

    def state_dict(self) -> dict[str, Any]:
        """Entries from oldest to newest as (id, nbytes, value)."""
        return {"entries": [(entry.id, entry.nbytes, entry.value) for entry in self._entries.values()]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the contents; the bounds stay this buffer's own and evict as usual."""
        self._entries.clear()
        self.nbytes = 0
        for id, nbytes, value in state["entries"]:
            self.add(id, nbytes, value)

    def _remove(self, id: str) -> ReplayEntry[Value]:
        entry = self._entries.pop(id)
        self.nbytes -= entry.nbytes
        return entry
