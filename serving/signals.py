"""Signals of a service in the foreground."""

import signal
from collections.abc import Iterator


def wait_for_signals() -> Iterator[None]:
    """Yields at every SIGHUP; ends at SIGINT or SIGTERM."""
    watched = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM}
    for each in watched:
        signal.signal(each, lambda *_: None)  # caught below; without a handler they would end the process
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    while signal.sigwait(watched) == signal.SIGHUP:
        yield
