"""``map`` over a bounded pool of processes."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNK = 16


def map_processes(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Results in the order of ``items``; with one worker in this process.

    ``function`` must be picklable. Processes are spawned, never forked, since torch's threads do not survive a fork.
    """
    if workers <= 1 or len(items) <= _CHUNK:
        yield from map(function, items)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(function, items, chunksize=_CHUNK)
