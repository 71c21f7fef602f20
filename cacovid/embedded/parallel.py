"""``map`` over a bounded pool of threads or processes."""

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_CHUNK = 16


def map_threads(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Results in the order of ``items``; for work that mostly leaves Python's lock, such as encoding video.

    Threads also work in a caller's script without ``if __name__ == "__main__"``, which spawned processes import again.
    """
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(function, items)


def map_processes(function: Callable[[Item], Result], items: Sequence[Item], workers: int) -> Iterator[Result]:
    """Results in the order of ``items``; with one worker in this process.

    ``function`` must be picklable. Processes are spawned, never forked, since torch's threads do not survive a fork.
    """
    if workers <= 1 or len(items) <= _CHUNK:
        yield from map(function, items)
        return
    # Ctrl-C reaches the whole foreground group: this process ends the pool, its workers say nothing.
    quiet = (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=signal.signal, initargs=quiet
    ) as pool:
        yield from pool.map(function, items, chunksize=_CHUNK)
