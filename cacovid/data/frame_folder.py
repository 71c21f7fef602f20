"""A video as a folder of pictures, one a frame, in the order of the numbers in their names."""

import os
import re
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cacovid.data.pictures import Picture, Pictures, check_size, held_size
from cacovid.data.timeline import Timeline
from cacovid.errors import BadItem

FRAMES_PER_SECOND = 3.0  # of every folder: MVBench stores its TVQA clips so, and a folder states no rate
_PICTURES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_FORMATS = ["JPEG", "PNG", "WEBP", "BMP"]


class FrameFolder:
    """Opened: the names are listed and the first picture's header is read."""

    def __init__(self, path: str | os.PathLike[str], max_pixels: int) -> None:
        self.files = frame_files(path)
        self.max_pixels = max_pixels
        self.width, self.height = self._read(0, None).shape[1::-1]
        second = 1 / FRAMES_PER_SECOND
        self.timeline = Timeline(np.arange(len(self.files)), second, second, 0)

    def pictures(self, wanted: list[int]) -> Pictures:
        """The wanted pictures at the first one's size."""
        size = held_size(self.width, self.height)
        read = {tick: self._read(tick, size) for tick in dict.fromkeys(wanted)}
        return np.stack([read[tick] for tick in wanted])

    def _read(self, number: int, size: tuple[int, int] | None) -> Picture:
        path = self.files[number]
        try:
            with Image.open(path, formats=_FORMATS) as opened:
                check_size(*opened.size, self.max_pixels, path)
                upright = ImageOps.exif_transpose(opened).convert("RGB")
                held = upright if size in (None, upright.size) else upright.resize(size, Image.Resampling.BOX)
                return np.asarray(held)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            if isinstance(error, BadItem):
                raise
            raise BadItem(f"{path}: is no readable picture ({type(error).__name__}); fetch it again") from None


def frame_files(path: str | os.PathLike[str]) -> list[Path]:
    """The folder's pictures in the order of the numbers in their names: ``9.jpg`` before ``10.jpg``.

    Raises:
        BadItem: it holds none.
    """
    found = [each for each in Path(path).iterdir() if each.suffix.lower() in _PICTURES]
    if not found:
        raise BadItem(f"{path}: the folder holds no frames ({', '.join(sorted(_PICTURES))}); check the path")
    return sorted(found, key=lambda file: re.sub(r"\d+", lambda number: number[0].zfill(20), file.name))
