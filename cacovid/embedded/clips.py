"""Clips whose every object and piece of clutter is known: drawn from one seed, aligned to cells.

Shape legend: T frames, 8 unless told, cells S = 36 a frame (6 x 6 of 16 px), so N = 288 video tokens.
"""

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt

from cacovid.embedded import glyphs
from cacovid.embedded.rendering import CELLS, SEEN, SIDE, Clutter, render
from cacovid.records import TokenGrid
from cacovid.seeding import derive_seed

FRAMES: Final = 8
GRID: Final = TokenGrid(FRAMES, SIDE, SIDE)
OBJECTS: Final = 8
NEEDLES: Final = 3

_LIFETIMES = ((FRAMES, FRAMES),) * 3 + ((3, 5),) * 2 + ((1, 2),) * NEEDLES  # frames visible, inclusive
_MOVE = 0.3  # probability of a move to a neighbouring cell, per frame
_CLUTTER_LIFETIME = 4

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SceneObject:
    """An object: its class indices and where it is."""

    shape: int  # index into glyphs.SHAPES
    colour: int  # index into glyphs.COLOUR_NAMES
    cells: tuple[int, ...]  # (T,) cell in each frame, -1 where it is not visible

    @property
    def tokens(self) -> tuple[int, ...]:
        """Video tokens that show it, ascending."""
        return tuple(frame * CELLS + cell for frame, cell in enumerate(self.cells) if cell >= 0)

    @property
    def is_needle(self) -> bool:
        """Whether it is visible in at most two frames."""
        return len(self.tokens) <= 2


@dataclass(frozen=True)
class Clip:
    """A drawn clip with its ground truth."""

    seed: int
    frames: npt.NDArray[np.uint8]  # (T, 96, 96, 3) RGB
    objects: tuple[SceneObject, ...]
    kinds: Integers  # (T, S) class of each cell, see glyphs
    colours: Integers  # (T, S)

    def owners(self) -> Integers:
        """(N,) index of the object that each video token shows, -1 for none."""
        owner = np.full(self.kinds.size, -1, dtype=np.int64)
        for index, scene_object in enumerate(self.objects):
            owner[list(scene_object.tokens)] = index
        return owner


def draw_clip(seed: int, frames: int = FRAMES, clutter: Clutter = SEEN) -> Clip:
    """The clip of a seed; the same on every machine.

    Args:
        frames: T, at least 8. Objects of a longer clip are visible no longer, so each is harder to find.
        clutter: what lies around them.
    """
    random = np.random.default_rng(derive_seed("embedded clip", seed))
    taken = np.zeros((frames, CELLS), dtype=bool)
    shapes = random.permutation(len(glyphs.SHAPES))[:OBJECTS]
    colours = random.permutation(len(glyphs.COLOUR_NAMES))[:OBJECTS]
    tracks = [object_track(random, taken, lifetime) for lifetime in _LIFETIMES]
    objects = tuple(
        SceneObject(int(shape), int(colour), tuple(track))
        for shape, colour, track in zip(shapes, colours, tracks, strict=True)
    )
    kind = np.full((frames, CELLS), glyphs.NO_KIND, dtype=np.int64)
    tone = np.full((frames, CELLS), glyphs.NO_COLOUR, dtype=np.int64)
    for scene_object in objects:
        tokens = list(scene_object.tokens)
        kind.flat[tokens] = scene_object.shape
        tone.flat[tokens] = scene_object.colour
    _add_clutter(random, taken, kind, tone, clutter.filled)
    return Clip(seed, render(random, kind, tone, glyphs.NO_KIND, clutter=clutter), objects, kind, tone)


@cache
def _neighbours() -> tuple[tuple[int, ...], ...]:
    def of(cell: int) -> tuple[int, ...]:
        row, column = divmod(cell, SIDE)
        steps = ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1))
        return tuple(r * SIDE + c for r, c in steps if 0 <= r < SIDE and 0 <= c < SIDE)

    return tuple(of(cell) for cell in range(CELLS))


def _pick(random: np.random.Generator, cells: Integers | list[int]) -> int:
    return int(cells[int(random.random() * len(cells))])


def _step(random: np.random.Generator, taken: npt.NDArray[np.bool_], cell: int) -> int | None:
    """The next frame's cell; ``taken`` (S,) is that frame's. None where it is hemmed in."""
    free = [near for near in _neighbours()[cell] if not taken[near]]
    stay = not taken[cell]
    if free and (not stay or random.random() < _MOVE):
        return _pick(random, free)
    return cell if stay else None


def object_track(random: np.random.Generator, taken: npt.NDArray[np.bool_], lifetime: tuple[int, int]) -> list[int]:
    """Cells of a new object in all frames (-1: not visible); marks them in ``taken`` (T, S)."""
    length = int(random.integers(lifetime[0], lifetime[1] + 1))
    start = int(random.integers(0, len(taken) - length + 1))
    track = [-1] * len(taken)
    cell: int | None = None
    for frame in range(start, start + length):
        if cell is not None:
            cell = _step(random, taken[frame], cell)
        if cell is None:
            cell = _pick(random, np.flatnonzero(~taken[frame]))
        track[frame] = cell
        taken[frame, cell] = True
    return track


def _add_clutter(
    random: np.random.Generator, taken: npt.NDArray[np.bool_], kind: Integers, tone: Integers, filled: int
) -> None:
    """Fill every frame to exactly ``filled`` of its cells, in place."""
    room = filled - taken.sum(axis=1)
    for start in range(len(taken)):
        while room[start] > 0:
            label = len(glyphs.SHAPES) + int(random.integers(glyphs.GLYPHS))
            shade = len(glyphs.COLOURS) + int(random.integers(len(glyphs.CLUTTER_COLOURS)))
            cell: int | None = _pick(random, np.flatnonzero(~taken[start]))
            end = min(len(taken), start + int(random.integers(1, _CLUTTER_LIFETIME + 1)))
            for frame in range(start, end):
                if frame > start:
                    cell = _step(random, taken[frame], cell) if room[frame] > 0 and cell is not None else None
                if cell is None:
                    break
                taken[frame, cell] = True
                kind[frame, cell], tone[frame, cell] = label, shade
                room[frame] -= 1
