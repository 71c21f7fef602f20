"""Commands as processes, some at a time. Ctrl-C reaches each of them once, and is waited for: they save their work."""

import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

LOOK_S = 0.2
ENDING = (signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal was closed


@dataclass(frozen=True)
class Job:
    """A command, and the file that takes what it prints."""

    name: str
    command: Sequence[str]
    log: Path

    def last_line(self) -> str:
        """What it printed last."""
        return self.log.read_text(errors="replace").strip().rpartition("\n")[2]


@dataclass(frozen=True)
class Ended:
    """How a job ended."""

    job: Job
    code: int
    seconds: float


class _Process:
    """A job under way, in a session of its own: a terminal's Ctrl-C goes to us alone."""

    def __init__(self, job: Job) -> None:
        self.job, self._started = job, time.monotonic()
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with job.log.open("a") as log:
            self.popen = subprocess.Popen(
                job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def ended(self) -> Ended | None:
        """None while it goes on."""
        code = self.popen.poll()
        return None if code is None else Ended(self.job, code, time.monotonic() - self._started)


def run_side_by_side(
    jobs: Iterable[Job], at_once: int, tell: Callable[[Ended], None], look: Callable[[Sequence[Job]], None]
) -> None:
    """Run all ``jobs`` in their order; ``tell`` hears of each that ended, ``look`` sees again and again what runs."""
    waiting, running = deque(jobs), list[_Process]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                running.append(_Process(waiting.popleft()))
            for each in list(running):
                ended = each.ended()
                if ended is not None:
                    running.remove(each)
                    tell(ended)
            look([each.job for each in running])
            time.sleep(LOOK_S)
    finally:
        _interrupt(running)


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt; one that is ignored, as SIGHUP under nohup, still is."""
    before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGHUP:  # both the shell and the kernel send it: the second is nobody's wish to end at once
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise KeyboardInterrupt


def _interrupt(running: Sequence[_Process]) -> None:
    """A second Ctrl-C meanwhile reaches them too, and ends them at once."""
    for each in running:
        each.popen.send_signal(signal.SIGINT)
    try:
        for each in running:
            each.popen.wait()
    except KeyboardInterrupt:
        _interrupt(running)
