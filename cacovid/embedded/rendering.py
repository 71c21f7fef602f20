"""Pixels of cells whose classes are known.

Shape legend: T frames, S = 36 cells a frame (6 x 6 of 16 px).
"""

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from cacovid.embedded import glyphs

SIDE: Final = 6
PIXELS: Final = SIDE * glyphs.CELL

_COLOUR_NOISE = 12
_SHADE = 0.4  # a tile's second tone, as a share of its first

CELLS: Final = SIDE * SIDE
FILLED: Final = CELLS // 2  # occupied cells of each frame

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Clutter:
    """What fills the cells beside the objects."""

    glyph_seed: int = glyphs.GLYPH_SEED  # seed of the 32 patterns
    colours: tuple[tuple[int, int, int], ...] = glyphs.CLUTTER_COLOURS  # ten
    filled: int = FILLED  # occupied cells of each frame, objects included


SEEN: Final = Clutter()  # by the model and by policies trained on the embedded clips
UNSEEN: Final = Clutter(glyphs.UNSEEN_GLYPH_SEED, glyphs.UNSEEN_COLOURS, CELLS * 2 // 3)


@cache
def _assets(clutter: Clutter) -> tuple[glyphs.Mask, Floats]:
    """All masks on full cells (53, 16, 16), sprites at the top left, and all colours (20, 3)."""
    sprites = np.zeros((len(glyphs.SHAPES), glyphs.CELL, glyphs.CELL), dtype=np.float32)
    sprites[:, : glyphs.SPRITE, : glyphs.SPRITE] = glyphs.sprite_masks()
    palette = [*glyphs.COLOURS.values(), *clutter.colours, glyphs.SYLLABLE_COLOUR]
    masks = np.concatenate([sprites, glyphs.clutter_masks(clutter.glyph_seed), glyphs.syllable_masks()])
    return masks, np.array(palette, dtype=np.float32)


def render(
    random: np.random.Generator,
    kind: Integers,
    tone: Integers,
    nothing: int,
    light: Floats | None = None,
    clutter: Clutter = SEEN,
) -> npt.NDArray[np.uint8]:
    """Pixels (T, 96, 96, 3) of the cells' classes (T, S).

    Args:
        nothing: The kind of an empty cell.
        light: (T, 3) background of each frame; None: the same dark grey in all.
        clutter: What lies around the objects.
    """
    masks, palette = _assets(clutter)
    if light is None:
        light = np.tile(np.array(glyphs.BACKGROUND, dtype=np.float32), (len(kind), 1))
    frame, cell = np.nonzero(kind != nothing)
    kinds, tones = kind[frame, cell], tone[frame, cell]
    is_object = kinds < len(glyphs.SHAPES)
    noise = random.integers(-_COLOUR_NOISE, _COLOUR_NOISE + 1, size=(len(kinds), 3))
    first = palette[tones] + noise
    second = np.where(is_object[:, None], light[frame], first * _SHADE)
    shift = np.where(is_object[:, None], random.integers(0, glyphs.CELL - glyphs.SPRITE + 1, size=(len(kinds), 2)), 0)
    axis = np.arange(glyphs.CELL)
    # Sprites have an empty margin on the right and below, so that rolling them is the jitter.
    rows, columns = (axis - shift[:, :1]) % glyphs.CELL, (axis - shift[:, 1:]) % glyphs.CELL
    cover = masks[kinds[:, None, None], rows[:, :, None], columns[:, None, :]][..., None]
    tiles = cover * first[:, None, None] + (1 - cover) * second[:, None, None]
    canvas = np.empty((len(kind), SIDE, glyphs.CELL, SIDE, glyphs.CELL, 3), dtype=np.uint8)
    canvas[:] = light[:, None, None, None, None]
    canvas[frame, cell // SIDE, :, cell % SIDE] = np.clip(np.rint(tiles), 0, 255).astype(np.uint8)
    return canvas.reshape(len(kind), PIXELS, PIXELS, 3)
