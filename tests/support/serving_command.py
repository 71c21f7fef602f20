"""``cacovid serve`` in a process of its own, its lines as they come."""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping


def command(*arguments: str, name: str = "serve") -> list[str]:
    return [sys.executable, "-m", "cluster.commands.main", name, *arguments]


class ServeCommand:
    """Runs inside the block; whatever is left of it is killed behind."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None, name: str = "serve") -> None:
        self.process = subprocess.Popen(
            command(*arguments, name=name),
            env=os.environ | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> "ServeCommand":
        return self

    def __exit__(self, *caught: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)

    def wait_for(self, text: str, seconds: float = 120) -> str:
        seen = []
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self.lines.get(timeout=max(0.1, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no line with {text!r} in:\n{''.join(seen)}") from None
            seen.append(line)
            if text in line:
                return line

    def end(self, seconds: float = 60) -> int:
        """SIGTERM; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)
