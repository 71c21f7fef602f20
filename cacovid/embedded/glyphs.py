"""What can lie in a cell: 9 object shapes, 32 clutter glyphs, 12 syllables, and their disjoint colours.

Classes of a cell's kind: 0-8 object shapes, 9-40 clutter glyphs, 41 nothing; of its colour: 0-8
object colours, 9-18 clutter colours, 19 nothing. The second world has syllables as well: kinds 41-52 and
colour 19, with nothing behind them.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.float32]

CELL: Final = 16  # pixels
SPRITE: Final = 14  # pixels; the two that are left over are jitter
SHAPES: Final = ("circle", "square", "triangle", "cross", "ring", "x", "bar", "pole", "moon")
COLOURS: Final = {
    "red": (230, 40, 40),
    "green": (40, 190, 60),
    "blue": (50, 80, 240),
    "yellow": (240, 220, 40),
    "pink": (250, 120, 190),
    "cyan": (50, 220, 230),
    "orange": (250, 140, 20),
    "purple": (150, 50, 210),
    "white": (245, 245, 245),
}
COLOUR_NAMES: Final = tuple(COLOURS)
BACKGROUND: Final = (36, 36, 40)
CLUTTER_COLOURS: Final = (
    (120, 72, 30),
    (110, 110, 30),
    (110, 20, 40),
    (25, 35, 110),
    (20, 105, 105),
    (20, 85, 40),
    (100, 60, 115),
    (90, 105, 130),
    (180, 150, 115),
    (135, 135, 135),
)
SYLLABLES: Final = ("ba", "do", "fe", "gu", "ki", "lo", "mu", "ni", "pa", "ra", "so", "tu")
SYLLABLE_COLOUR: Final = (190, 255, 140)
GLYPHS: Final = 32
NO_KIND: Final = len(SHAPES) + GLYPHS
NO_COLOUR: Final = len(COLOURS) + len(CLUTTER_COLOURS)
KINDS: Final = NO_KIND + 1
COLOUR_CLASSES: Final = NO_COLOUR + 1

GLYPH_SEED: Final = 20_260_101  # the glyphs are part of the benchmark: never drawn anew
UNSEEN_GLYPH_SEED: Final = 20_260_102  # other ones, that nothing was trained on
UNSEEN_COLOURS: Final = (
    (70, 110, 60),
    (60, 45, 30),
    (75, 75, 90),
    (130, 95, 75),
    (55, 70, 75),
    (105, 120, 90),
    (90, 60, 80),
    (150, 120, 140),
    (95, 50, 50),
    (160, 160, 145),
)  # 85 levels or more from the objects', 22 or more from CLUTTER_COLOURS
_SUPERSAMPLE = 8


def sprite_masks() -> Mask:
    """Coverage of the nine shapes, (9, 14, 14) in [0, 1], anti-aliased, in the order of ``SHAPES``."""
    side = SPRITE * _SUPERSAMPLE
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    x, y = np.meshgrid(axis, axis)
    radius = np.hypot(x, y)
    box = np.maximum(np.abs(x), np.abs(y))
    inside = np.stack([
        radius < 0.95,
        box < 0.82,
        (y < 0.88) & (np.abs(x) < (y + 0.95) * 0.52),
        ((np.abs(x) < 0.3) | (np.abs(y) < 0.3)) & (box < 0.95),
        (radius < 0.97) & (radius > 0.55),
        (np.abs(np.abs(x) - np.abs(y)) < 0.36) & (box < 0.95),
        (np.abs(y) < 0.32) & (np.abs(x) < 0.97),
        (np.abs(x) < 0.32) & (np.abs(y) < 0.97),
        (radius < 0.95) & (np.hypot(x - 0.5, y) > 0.72),
    ])  # fmt: skip
    cells = inside.reshape(len(SHAPES), SPRITE, _SUPERSAMPLE, SPRITE, _SUPERSAMPLE)
    coverage: Mask = cells.mean(axis=(2, 4), dtype=np.float32)
    return coverage


def clutter_masks(seed: int = GLYPH_SEED) -> Mask:
    """The fixed clutter glyphs, (32, 16, 16) of 0 or 1: distinct random 4x4 patterns of 5 to 11 set bits."""
    return _tile_masks(GLYPHS, seed)


def syllable_masks() -> Mask:
    """The fixed tiles that read as ``SYLLABLES``, (12, 16, 16): patterns as the clutter's, and none of them."""
    return _tile_masks(GLYPHS + len(SYLLABLES), GLYPH_SEED)[GLYPHS:]


def _tile_masks(count: int, seed: int) -> Mask:
    random = np.random.default_rng(seed)
    chosen: dict[bytes, npt.NDArray[np.bool_]] = {}
    while len(chosen) < count:
        pattern = random.random((4, 4)) < 0.5
        if 5 <= pattern.sum() <= 11:
            chosen.setdefault(pattern.tobytes(), pattern)
    patterns = np.stack(list(chosen.values()))
    return patterns.repeat(CELL // 4, axis=1).repeat(CELL // 4, axis=2).astype(np.float32)
