"""Ctrl-C and SIGTERM of a training run: what is under way is saved before the process ends."""

import logging
import signal
import time
from collections.abc import Callable
from types import FrameType

logger = logging.getLogger(__name__)


class Interrupt:
    """Turns the first SIGINT or SIGTERM while the run is under way into a wish; any other raises KeyboardInterrupt.

    Ctrl-C lets the training step under way end, however long it takes: a person can press it again. Whoever sends
    SIGTERM kills soon after, so a step that does not end within ``grace_s`` is given up.

    Attributes:
        asked: The run is to end.
    """

    def __init__(self, grace_s: float) -> None:
        self.asked = False
        self._grace_s = grace_s
        self._give_up_at: Callable[[float], None] | None = None  # None: there is nothing to save
        self._before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}
        for name in self._before:
            signal.signal(name, self._handle)

    def begin(self, give_up_at: Callable[[float], None]) -> None:
        """From now on there is something to save; ``give_up_at`` takes the end of the grace, in time.monotonic()."""
        self._give_up_at = give_up_at

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked or self._give_up_at is None:
            raise KeyboardInterrupt
        self.asked = True
        if number == signal.SIGTERM:
            self._give_up_at(time.monotonic() + self._grace_s)
            logger.warning("ending with a checkpoint, at the latest in %.0f s", self._grace_s)
        else:
            logger.warning("ending after this training step, with a checkpoint; a second Ctrl-C ends at once")

    def restore(self) -> None:
        """Put the handlers back that were there before."""
        for name, handler in self._before.items():
            signal.signal(name, handler)
