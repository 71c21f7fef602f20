"""The figures of one compressed clip: frame scores along time, and token scores over the frames.

Source: the figures of Ma et al., for any clip and policy.

Shape legend: N video tokens, T frames of the token grid (temporal steps), F decoded frames, k retained tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from cacovid.drawing.sheet import (
    INK,
    KEPT,
    MARGIN,
    SOFT,
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

DPI = 140
STRIP = 12  # frames above the curve, at most
MAPS = 64  # frames of a heat map, at most
WIDTH = 11.0  # inches
_HEAT = colormaps["inferno"]
_LINE, _BARS = "#0072B2", tuple(value / 255 for value in KEPT)
_INK = tuple(value / 255 for value in INK)
_SCALE = 40  # pixels of the scale below a heat map
_STRENGTH = 0.62  # share of the heat in a cell's colour; the rest is the frame in grey


@dataclass(frozen=True, eq=False)
class ScoredClip:
    """What a policy made of one clip and question."""

    frames: NDArray[np.uint8]  # (F, height, width, 3) RGB
    timestamps: Sequence[float]  # (F,) seconds
    grid: TokenGrid
    token_scores: Tensor  # (N,) keep minus drop
    frame_scores: Tensor  # (T,)
    kept: Tensor  # (k,) ascending

    def frame(self, step: int) -> NDArray[np.uint8]:
        """The decoded frame that a step of the grid is shown by."""
        found: NDArray[np.uint8] = self.frames[self.source(step)]
        return found

    def seconds(self, step: int) -> float:
        """When that frame is seen."""
        return self.timestamps[self.source(step)]

    def source(self, step: int) -> int:
        """The decoded frame that a step of the grid is shown by."""
        return shown_frame(step, len(self.frames), self.grid)


def draw_frame_scores(clip: ScoredClip, title: str = "") -> Image.Image:
    """Frame scores along time as a curve, tokens retained of each frame as bars, some of the frames above."""
    steps = np.arange(clip.grid.frames)
    left, right, bottom, plot, gap = 0.75, 0.75, 0.6, 2.5, 0.1  # inches
    inner = WIDTH - left - right
    slots = min(clip.grid.frames, STRIP)
    height, width = clip.frames.shape[1:3]
    side = 0.96 * min(inner / slots, 2.2 * width / height)
    strip = side * height / width
    total = bottom + plot + gap + strip + (0.45 if title else 0.12)
    figure = Figure(figsize=(WIDTH, total), dpi=DPI)
    curve = figure.add_axes((left / WIDTH, bottom / total, inner / WIDTH, plot / total))
    _curve(curve, clip, steps)
    for slot in range(slots):
        step = (2 * slot + 1) * clip.grid.frames // (2 * slots)  # above the middle of its part of the curve
        corner = left + (slot + 0.5) * inner / slots - side / 2
        place = (corner / WIDTH, (bottom + plot + gap) / total, side / WIDTH, strip / total)
        picture = figure.add_axes(place)
        picture.imshow(clip.frame(step), interpolation="nearest" if width < 200 else "antialiased", aspect="auto")
        picture.set_axis_off()
    if title:
        figure.text(left / WIDTH, 1 - 0.2 / total, _shortened(title), fontsize=11, color=_INK, va="center")
    return _image(figure)


def _curve(axes: Any, clip: ScoredClip, steps: NDArray[np.int64]) -> None:  # noqa: ANN401 - matplotlib has no types here
    counts = kept_mask(clip.kept, clip.grid).sum(axis=(1, 2))
    beside = axes.twinx()
    beside.bar(steps, counts, width=0.72, color=_BARS, alpha=0.45)
    beside.set_ylabel("tokens kept")
    beside.set_ylim(0, 1.25 * max(1, counts.max()))
    beside.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
    axes.plot(steps, clip.frame_scores.cpu().numpy(), color=_LINE, marker="o", markersize=4, linewidth=1.8)
    axes.set_ylabel("frame score", color=_LINE)
    axes.set_xlabel("time in seconds")
    axes.set_xlim(-0.5, clip.grid.frames - 0.5)
    ticks = _spread(clip.grid.frames, 16)
    axes.set_xticks(ticks, [f"{clip.seconds(step):.3g}" for step in ticks])
    axes.set_zorder(beside.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.margins(y=0.15)
    for each in (axes, beside):
        each.spines["top"].set_visible(False)


def draw_token_scores(clip: ScoredClip, title: str = "") -> Image.Image:
    """A heat map of the token scores over the frames, on one scale; retained tokens have a white border.

    Of more than ``MAPS`` frames as many are shown, evenly.
    """
    scores = clip.token_scores.cpu().float().numpy().reshape(clip.grid)
    low, high = (float(bound) for bound in np.quantile(scores, (0.01, 0.99)))  # outliers would take all the colours
    scale = Normalize(low, high if high > low else low + 1, clip=True)
    mask, shown = kept_mask(clip.kept, clip.grid), _spread(clip.grid.frames, MAPS)
    layout = sheet_layout(clip.frames.shape[1], clip.frames.shape[2], clip.grid._replace(frames=len(shown)))
    sheet, top = blank_sheet(layout, [title] if title else [], below=_SCALE)
    pen = ImageDraw.Draw(sheet)
    for place, step in enumerate(shown):
        left, upper = layout.corner(place, top)
        sheet.paste(_heated(clip.frame(step), _HEAT(scale(scores[step]))[..., :3], mask[step], layout), (left, upper))
        caption = caption_of(clip.timestamps, clip.source(step))
        pen.text((left, upper + layout.height + 3), caption, SOFT, font=font_of(12))
    _draw_scale(sheet, scale, sheet.height - MARGIN - _SCALE)
    return sheet


def _heated(
    frame: NDArray[np.uint8], colours: NDArray[np.float64], kept: NDArray[np.bool_], layout: Layout
) -> Image.Image:
    grey = layout.enlarged(frame).mean(axis=2, keepdims=True)
    heated = (1 - _STRENGTH) * grey + _STRENGTH * 255 * layout.spread(colours)
    heated[border(layout, kept)] = 255
    return Image.fromarray(heated.clip(0, 255).astype(np.uint8))


def _draw_scale(sheet: Image.Image, scale: Normalize, top: int) -> None:
    """Which colour is which score, on the left below the frames."""
    width = min(320, sheet.width - 2 * MARGIN)
    ramp = np.broadcast_to(_HEAT(np.linspace(0, 1, width))[None, :, :3], (12, width, 3))
    sheet.paste(Image.fromarray((255 * ramp).astype(np.uint8)), (MARGIN, top + 6))
    pen, font = ImageDraw.Draw(sheet), font_of(12)
    for share, anchor, unit in ((0.0, "la", ""), (0.5, "ma", " token score"), (1.0, "ra", "")):
        value = float(scale.inverse(share))
        pen.text((MARGIN + round(share * width), top + 21), f"{value:.3g}{unit}", SOFT, font=font, anchor=anchor)


def _spread(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` places, evenly."""
    return [round(place) for place in np.linspace(0, count - 1, min(count, most)).tolist()]


def _shortened(title: str) -> str:
    """On one line; a dollar sign is no formula."""
    words = " ".join(title.split())
    return (words if len(words) <= 120 else words[:119] + "…").replace("$", r"\$")


def _image(figure: Figure) -> Image.Image:
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")
