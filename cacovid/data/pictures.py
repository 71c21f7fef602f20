"""What every kind of video gives: pictures of one size, none of them larger than a tower reads."""

from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from cacovid.data.timeline import Timeline
from cacovid.errors import BadItem

HELD_PIXELS = 2_073_600  # larger frames are scaled down to 1080p's area: no tower reads more of them
Picture: TypeAlias = NDArray[np.uint8]  # (height, width, 3) RGB, upright
Pictures: TypeAlias = NDArray[np.uint8]  # (n, height, width, 3)


class Source(Protocol):
    """A video that was opened: its clock and size are known, nothing is decoded yet."""

    timeline: Timeline
    width: int
    height: int

    def pictures(self, wanted: list[int]) -> Pictures:
        """The pictures shown at the ``wanted`` ticks, which ascend; an unreadable one raises BadItem."""


def held_size(width: int, height: int) -> tuple[int, int]:
    """(width, height) that pictures of a size are held at."""
    shrink = min(1.0, (HELD_PIXELS / (width * height)) ** 0.5)
    return max(1, round(width * shrink)), max(1, round(height * shrink))


def check_size(width: int, height: int, max_pixels: int, path: object) -> None:
    """Raises :class:`BadItem` where a frame is larger than ``max_pixels``."""
    if width * height > max_pixels:
        raise BadItem(
            f"{path}: frames of {width}x{height} exceed {max_pixels} pixels; scale the video down "
            "or raise data.max_pixels"
        )
