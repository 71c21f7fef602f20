"""A sheet of frames: how they lie, the text above them, and its file."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cacovid.atomic import writing
from cacovid.records import TokenGrid

BACKGROUND = (250, 250, 250)
INK = (32, 32, 32)
SOFT = (120, 120, 120)
TRACK = (226, 226, 226)
KEPT = (255, 176, 0)
GAP, MARGIN = 12, 18
BAR = 8
CAPTION = 18
Kind = TypeVar("Kind", bound=np.generic)


@dataclass(frozen=True)
class Layout:
    """Pixels of the sheet."""

    width: int  # of one drawn frame
    height: int
    columns: int
    steps: int

    @property
    def rows(self) -> int:
        """Of frames."""
        return -(-self.steps // self.columns)

    @property
    def cell_height(self) -> int:
        """Frame, caption and budget bar."""
        return self.height + CAPTION + BAR + 6

    @property
    def inner_width(self) -> int:
        """Without the margins."""
        return self.columns * self.width + (self.columns - 1) * GAP

    def enlarged(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(height, width, 3) a frame at its drawn size."""
        sampling = Image.Resampling.NEAREST if frame.shape[1] * 2 <= self.width else Image.Resampling.LANCZOS
        return np.asarray(Image.fromarray(frame).resize((self.width, self.height), sampling), dtype=np.float32)

    def spread(self, cells: NDArray[Kind]) -> NDArray[Kind]:
        """(height, width) the value of the (rows, columns) cell that each drawn pixel lies in."""
        vertical, horizontal = _cell_of_pixel(self.height, cells.shape[0]), _cell_of_pixel(self.width, cells.shape[1])
        found: NDArray[Kind] = cells[vertical[:, None], horizontal[None, :]]
        return found

    def corner(self, step: int, top: int) -> tuple[int, int]:
        """Upper left pixel of a frame."""
        row, column = divmod(step, self.columns)
        return MARGIN + column * (self.width + GAP), top + row * (self.cell_height + GAP)


def blank_sheet(layout: Layout, lines: Sequence[str], below: int = 0) -> tuple[Image.Image, int]:
    """An empty sheet with ``lines`` of text above and ``below`` free pixels under the frames; the frames' top."""
    font = font_of(15)
    wrapped = [part for line in lines for part in _wrapped(line, font, layout.inner_width)]
    top = MARGIN + 22 * len(wrapped) + (8 if wrapped else 0)
    height = top + layout.rows * (layout.cell_height + GAP) - GAP + below + MARGIN
    sheet = Image.new("RGB", (layout.inner_width + 2 * MARGIN, height), BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(wrapped):
        pen.text((MARGIN, MARGIN + 22 * number), line, INK, font=font)
    return sheet, top


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG in one piece; the folder is made if absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as part:
        image.save(part, format="PNG")


def sheet_layout(height: int, width: int, grid: TokenGrid) -> Layout:
    """About as many frames side by side as fill a page; each cell of the grid at least 3 pixels."""
    steps = grid.frames
    across = min(steps, 4 if steps <= 8 and width >= height else 8)
    wanted = max(160, min(384, (1600 - GAP * (across - 1)) // across, 480 * width // height))
    wanted = max(wanted, 3 * grid.columns, -(-3 * grid.rows * width // height))
    return Layout(wanted, max(1, round(wanted * height / width)), across, steps)


def _cell_of_pixel(pixels: int, cells: int) -> NDArray[np.int64]:
    """(pixels,) the grid cell that each pixel's middle lies in."""
    return ((2 * np.arange(pixels) + 1) * cells) // (2 * pixels)


def kept_mask(kept: Tensor, grid: TokenGrid) -> NDArray[np.bool_]:
    """(T, rows, columns) whether a token is among the (k,) retained ones."""
    mask = np.zeros(grid.tokens, dtype=bool)
    mask[kept.cpu().numpy()] = True
    return mask.reshape(grid)


def shown_frame(step: int, frames: int, grid: TokenGrid) -> int:
    """The one of ``frames`` decoded frames that a step of the grid is shown by: the first of those it stands for."""
    return step * frames // grid.frames


def border(layout: Layout, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(height, width) the pixels along the edge of the kept (rows, columns) cells of a drawn frame."""
    light = inner = layout.spread(kept)
    for _ in range(max(1, min(3, layout.width // (kept.shape[1] * 12)))):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return light & ~inner


def caption_of(timestamps: Sequence[float], source: int) -> str:
    """The time of one of a clip's frames, with decimals enough to tell its neighbours apart."""
    return f"{timestamps[source]:.2f} s" if timestamps[-1] < 10 else f"{timestamps[source]:.1f} s"


def _wrapped(line: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """``line`` broken between words so that each part fits; a longer word stands alone."""
    parts: list[str] = []
    for word in line.split():
        if parts and font.getlength(f"{parts[-1]} {word}") <= width:
            parts[-1] = f"{parts[-1]} {word}"
        else:
            parts.append(word)
    return parts or [""]


@cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and covers many scripts."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
