"""How every benchmark takes its times: one timer, rounds in which the sides take turns, and what is told of them."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Self

Work = Callable[[], object]


def seconds(work: Work) -> float:
    """Wall time of ``work()``."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def alternating_rounds(
    sides: Mapping[str, Work], rounds: int, before: Work = lambda: None
) -> dict[str, tuple[float, ...]]:
    """Seconds of each side in each round; in a round all have their turn, so that a drift of the machine hits all.

    Args:
        sides: What is compared, by name, in the order of the turns.
        rounds: How often.
        before: Untimed, before every round.
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        before()
        for name, work in sides.items():
            times[name].append(seconds(work))
    return {name: tuple(each) for name, each in times.items()}


@dataclass(frozen=True)
class Spread:
    """The median of repeated measurements, and how far they lie apart."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Self:
        """Of at least one value."""
        held = list(values)
        return cls(statistics.median(held), min(held), max(held))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f} - {self.most:.2f})"
