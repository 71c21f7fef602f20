"""Kept tokens drawn over the frames: a contact sheet for one video and question.

Shape legend: F decoded frames, T frames of the token grid (temporal steps), S = rows * columns
tokens per frame.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from cacovid.drawing.sheet import (
    BAR,
    CAPTION,
    INK,
    KEPT,
    SOFT,
    TRACK,
    Layout,
    blank_sheet,
    border,
    caption_of,
    font_of,
    kept_mask,
    sheet_layout,
    shown_frame,
)
from cacovid.records import TokenGrid

_DIMMED = 0.4  # brightness left to dropped tokens


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
    by_step = kept_mask(kept, grid)
    layout = sheet_layout(frames.shape[1], frames.shape[2], grid)
    sheet, top = blank_sheet(layout, lines)
    pen, small = ImageDraw.Draw(sheet), font_of(12)
    fullest = max(1, int(by_step.sum(axis=(1, 2)).max()))
    for step in range(grid.frames):
        source = shown_frame(step, len(frames), grid)
        left, upper = layout.corner(step, top)
        sheet.paste(_marked(frames[source], by_step[step], layout), (left, upper))
        count = int(by_step[step].sum())
        caption = caption_of(timestamps, source) if len(timestamps) else f"frame {step + 1}"
        _captions(pen, (left, upper + layout.height), layout.width, caption, (count, grid.per_frame, fullest), small)
    return sheet


def _marked(frame: NDArray[np.uint8], kept: NDArray[np.bool_], layout: Layout) -> Image.Image:
    """One frame at its drawn size, dropped cells dimmed and the border of the kept area outlined."""
    pixels, light = layout.enlarged(frame), layout.spread(kept)
    grey = pixels.mean(axis=2, keepdims=True)
    dimmed = (0.35 * pixels + 0.65 * grey) * _DIMMED + 18
    marked = np.where(light[..., None], pixels, dimmed)
    marked[border(layout, kept)] = KEPT
    return Image.fromarray(marked.clip(0, 255).astype(np.uint8))


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
    upper = top + CAPTION + 4
    pen.rectangle((left, upper, left + width - 1, upper + BAR - 1), fill=TRACK)
    filled = round(width * count / fullest)
    if filled:
        pen.rectangle((left, upper, left + filled - 1, upper + BAR - 1), fill=KEPT)
