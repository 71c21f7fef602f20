"""When the frames of a video are shown, and which of them a sample takes.

Shape legend: F frames of the video or of the watched segment, n sampled frames.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from cacovid.errors import BadItem

_ROUNDING_S = 1e-6  # container clocks are rational numbers


@dataclass(frozen=True)
class Timeline:
    """Presentation clock of a video's frames, or of those in a segment of it."""

    ticks: NDArray[np.int64]  # (F,) ascending, F > 0
    tick_s: float  # seconds per tick
    frame_s: float  # mean seconds per frame
    origin: int  # tick of the whole video's first frame

    @property
    def duration_s(self) -> float:
        """Presentation time of these frames."""
        return float(self.ticks[-1] - self.ticks[0]) * self.tick_s + self.frame_s

    def seconds(self, tick: int) -> float:
        """Seconds from the whole video's first frame to ``tick``."""
        return (tick - self.origin) * self.tick_s

    def segment(self, start: float | None, end: float | None, path: object) -> "Timeline":
        """The frames from ``start`` to ``end`` seconds, at least the one nearest to ``start``.

        An end behind the video's is the video's: the public collections have many.

        Raises:
            BadItem: The segment is empty, or begins before or behind the video.
        """
        if start is None and end is None:
            return self
        first, last = start or 0.0, float("inf") if end is None else end
        if not 0 <= first < last:
            raise BadItem(f"{path}: the segment from {start} to {end} s is empty; correct the columns start and end")
        if first >= self.duration_s:
            raise BadItem(
                f"{path}: the segment starts at {first:g} s of {self.duration_s:.1f} s; correct the column start"
            )
        times = (self.ticks - self.origin) * self.tick_s
        inside = self.ticks[(times >= first - _ROUNDING_S) & (times <= last + _ROUNDING_S)]
        if not len(inside):
            nearest = int(np.abs(times - first).argmin())
            inside = self.ticks[nearest : nearest + 1]
        return replace(self, ticks=inside)

    def count(self, num_frames: int, fps: float | None) -> int:
        """How many frames to sample: ``fps`` a second, at most ``num_frames``; ``num_frames`` without ``fps``."""
        return num_frames if fps is None else max(1, min(num_frames, round(self.duration_s * fps)))

    def spread(self, count: int) -> list[int]:
        """(n,) ticks of the frames nearest to ``count`` evenly spaced times from first to last; few frames repeat."""
        times = self.ticks.astype(np.float64)
        targets = np.linspace(times[0], times[-1], count)
        after = np.minimum(np.maximum(np.searchsorted(times, targets), 1), len(times) - 1)
        before = np.maximum(after - 1, 0)
        nearest = np.where(targets - times[before] <= times[after] - targets, before, after)
        chosen: list[int] = self.ticks[nearest].tolist()
        return chosen
