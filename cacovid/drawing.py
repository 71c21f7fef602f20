"""Kept tokens drawn over the frames: a contact sheet for one video and question.

Shape legend: F decoded frames, T frames of the token grid (temporal steps), S = rows * columns
tokens per frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

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
_DIMMED = 0.4  # brightness left to dropped tokens
_GAP, _MARGIN = 12, 18
_BAR = 8
_CAPTION = 18


@dataclass(frozen=True)
class _Layout:
    """Pixels of the sheet."""

    width: int  # of one drawn frame
    height: int
    columns: int
    steps: int

    @property
    def rows(self) -> int:
        return -(-self.steps // self.columns)

    @property
    def cell_height(self) -> int:
        """Frame, caption and budget bar."""
        return self.height + _CAPTION + _BAR + 6

    @property
    def inner_width(self) -> int:
        return self.columns * self.width + (self.columns - 1) * _GAP

    def corner(self, step: int, top: int) -> tuple[int, int]:
        """Upper left pixel of a frame."""
        row, column = divmod(step, self.columns)
        return _MARGIN + column * (self.width + _GAP), top + row * (self.cell_height + _GAP)


def draw_kept_tokens(
    frames: NDArray[np.uint8],
    grid: TokenGrid,
    kept: Tensor,
    *,
    timestamps: Sequence[float] = (),
    lines: Sequence[str] = (),
) -> Image.Image:
    """Frames in a grid; dropped tokens dimmed, kept ones in full light with an outline.

    Below each frame a bar shows its share of the tokens kept, on the scale of the fullest frame.

    Args:
        frames: (F, height, width, 3) uint8 RGB; step t of the grid shows the first of its F/T frames.
        grid: how the tokens lie; each frame is divided evenly into rows x columns.
        kept: (k,) retained token indices.
        timestamps: (F,) seconds of the frames, for the captions.
        lines: text above the sheet; long lines are wrapped.
    """
    assert frames.ndim == 4, f"frames have shape {frames.shape}"
    assert len(frames) >= 1
    mask = np.zeros(grid.tokens, dtype=bool)
    mask[kept.cpu().numpy()] = True
    by_step = mask.reshape(grid)
    layout = _layout(frames.shape[1], frames.shape[2], grid)
    font, small = _font(15), _font(12)
    wrapped = [part for line in lines for part in _wrap(line, font, layout.inner_width)]
    top = _MARGIN + 22 * len(wrapped) + (8 if wrapped else 0)
    size = (layout.inner_width + 2 * _MARGIN, top + layout.rows * (layout.cell_height + _GAP) - _GAP + _MARGIN)
    sheet = Image.new("RGB", size, BACKGROUND)
    pen = ImageDraw.Draw(sheet)
    for number, line in enumerate(wrapped):
        pen.text((_MARGIN, _MARGIN + 22 * number), line, INK, font=font)
    fullest = max(1, int(by_step.sum(axis=(1, 2)).max()))
    for step in range(grid.frames):
        source = step * len(frames) // grid.frames
        left, upper = layout.corner(step, top)
        sheet.paste(_marked(frames[source], by_step[step], layout), (left, upper))
        count = int(by_step[step].sum())
        caption = _seconds(timestamps, source) if len(timestamps) else f"frame {step + 1}"
        _captions(pen, (left, upper + layout.height), layout.width, caption, (count, grid.per_frame, fullest), small)
    return sheet


def save_image(image: Image.Image, path: Path) -> None:
    """Write a PNG in one piece; the folder is made if absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as part:
        image.save(part, format="PNG")


def _layout(height: int, width: int, grid: TokenGrid) -> _Layout:
    """About as many frames side by side as fill a page; each cell of the grid at least 3 pixels."""
    steps = grid.frames
    across = min(steps, 4 if steps <= 8 and width >= height else 8)
    wanted = max(160, min(384, (1600 - _GAP * (across - 1)) // across, 480 * width // height))
    wanted = max(wanted, 3 * grid.columns, -(-3 * grid.rows * width // height))
    return _Layout(wanted, max(1, round(wanted * height / width)), across, steps)


def _marked(frame: NDArray[np.uint8], kept: NDArray[np.bool_], layout: _Layout) -> Image.Image:
    """One frame at its drawn size, dropped cells dimmed and the border of the kept area outlined."""
    sampling = Image.Resampling.NEAREST if frame.shape[1] * 2 <= layout.width else Image.Resampling.LANCZOS
    picture = Image.fromarray(frame).resize((layout.width, layout.height), sampling)
    vertical = _cell_of_pixel(layout.height, kept.shape[0])
    horizontal = _cell_of_pixel(layout.width, kept.shape[1])
    light = kept[vertical[:, None], horizontal[None, :]]
    pixels = np.asarray(picture, dtype=np.float32)
    grey = pixels.mean(axis=2, keepdims=True)
    dimmed = (0.35 * pixels + 0.65 * grey) * _DIMMED + 18
    marked = np.where(light[..., None], pixels, dimmed)
    thickness = max(1, min(3, layout.width // (kept.shape[1] * 12)))
    marked[_border(light, thickness)] = KEPT
    return Image.fromarray(marked.clip(0, 255).astype(np.uint8))


def _cell_of_pixel(pixels: int, cells: int) -> NDArray[np.int64]:
    """(pixels,) the grid cell that each pixel's middle lies in."""
    return ((2 * np.arange(pixels) + 1) * cells) // (2 * pixels)


def _border(light: NDArray[np.bool_], thickness: int) -> NDArray[np.bool_]:
    """The pixels of the kept area that lie within ``thickness`` of its edge."""
    inner = light
    for _ in range(thickness):
        padded = np.pad(inner, 1)
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return light & ~inner


def _seconds(timestamps: Sequence[float], source: int) -> str:
    return f"{timestamps[source]:.2f} s" if timestamps[-1] < 10 else f"{timestamps[source]:.1f} s"


def _captions(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    width: int,
    caption: str,
    counts: tuple[int, int, int],
    font: ImageFont.FreeTypeFont,
) -> None:
    """Time on the left, count on the right, the budget bar below."""
    left, top = corner
    count, per_frame, fullest = counts
    pen.text((left, top + 3), caption, SOFT, font=font)
    pen.text((left + width, top + 3), f"{count} of {per_frame}", INK if count else SOFT, font=font, anchor="ra")
    upper = top + _CAPTION + 4
    pen.rectangle((left, upper, left + width - 1, upper + _BAR - 1), fill=TRACK)
    filled = round(width * count / fullest)
    if filled:
        pen.rectangle((left, upper, left + filled - 1, upper + _BAR - 1), fill=KEPT)


def _wrap(line: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """``line`` broken between words so that each part fits; a longer word stands alone."""
    parts: list[str] = []
    for word in line.split():
        if parts and font.getlength(f"{parts[-1]} {word}") <= width:
            parts[-1] = f"{parts[-1]} {word}"
        else:
            parts.append(word)
    return parts or [""]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib and covers many scripts."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
