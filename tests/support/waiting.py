"""Patience: what happens shortly after an answer is waited for, and nothing fails because a machine is busy."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx2 as httpx

PATIENCE_S = 60.0


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE_S) -> float:
    """Return after how many seconds ``condition`` held; it fails the test if that takes longer than ``seconds``."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - started


async def until(condition: Callable[[], Any], seconds: float = PATIENCE_S) -> None:
    """:func:`wait_until` beside other tasks of an event loop."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


def get(url: str, **options: Any) -> httpx.Response:
    """GET with more time than httpx gives by itself."""
    return httpx.get(url, timeout=PATIENCE_S, **options)
