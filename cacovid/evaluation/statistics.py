"""Means over questions, with standard errors clustered by video."""

import math
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Count and sum of values, as a whole and of each video."""

    count: int = 0
    total: float = 0.0
    by_video: dict[str, tuple[int, float]] = field(default_factory=dict)  # count and sum

    def add(self, value: float, video: str) -> None:
        """Take in the value of one question about ``video``."""
        self.count += 1
        self.total += value
        count, total = self.by_video.get(video, (0, 0.0))
        self.by_video[video] = (count + 1, total + value)

    def mean(self) -> float | None:
        """None of nothing."""
        return self.total / self.count if self.count else None

    def stderr(self) -> float:
        """Standard error of the mean, residuals summed within each video; 0 of nothing.

        Questions about one clip fall together, so the videos are the independent draws. For values of 0 and 1, one a
        video, it is sqrt(p(1-p)/n): there is no factor for few clusters. Source: Liang and Zeger 1986.
        """
        if not self.count:
            return 0.0
        mean = self.total / self.count
        residuals = (total - count * mean for count, total in self.by_video.values())
        return math.sqrt(sum(residual * residual for residual in residuals)) / self.count
