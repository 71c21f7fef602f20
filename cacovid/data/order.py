"""Which items a training step takes: a function of (seed, step) alone."""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from cacovid.data.stored import StoredQuestions
from cacovid.records import VideoQuestion
from cacovid.seeding import generator


class ItemOrder:
    """Endless epochs over the items, each epoch in its own seeded order."""

    def __init__(self, items: Sequence[VideoQuestion], per_step: int, seed: int) -> None:
        self.items = items
        self.by_id: Mapping[str, VideoQuestion] = (
            items.by_id if isinstance(items, StoredQuestions) else {item.id: item for item in items}
        )
        self.per_step = per_step
        self.seed = seed
        self._epoch = lru_cache(maxsize=2)(self._shuffled)

    def of_step(self, step: int) -> tuple[VideoQuestion, ...]:
        """The items of training step ``step`` (from 0); an epoch's end may fall within a step."""
        start = step * self.per_step
        size = len(self.items)
        places = range(start, start + self.per_step)
        return tuple(self.items[int(self._epoch(place // size)[place % size])] for place in places)

    def epoch_of(self, step: int) -> float:
        """Epochs finished after ``step`` training steps."""
        return step * self.per_step / len(self.items)

    def _shuffled(self, epoch: int) -> Tensor:
        """(items,) int64 indices."""
        return torch.randperm(len(self.items), generator=generator(self.seed, "order", epoch))
