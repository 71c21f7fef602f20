"""How the training stages report."""

from collections.abc import Callable, Mapping

Progress = Callable[[str, int, int, Mapping[str, float]], None]
"""Called with the stage's name, steps done, steps in all, and the latest metrics."""


def silent(stage: str, done: int, total: int, metrics: Mapping[str, float]) -> None:
    """Reports nothing."""
