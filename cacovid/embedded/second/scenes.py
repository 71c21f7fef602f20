"""Scenes of the second world: 64 frames under a light that tells the hour, drawn from one seed.

Objects: four are seen for 2-4 frames in an hour of their own, two stay for 32-48 frames and wander, two stand at one
place in the first half and at another in the second. Three syllables of a sign light up in hours of their own.

Shape legend: T = 64 frames of 8 hours, cells S = 36 a frame, N = 2,304 video tokens.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from cacovid.embedded import glyphs
from cacovid.embedded.clips import SceneObject, object_track
from cacovid.embedded.rendering import CELLS, SIDE, render
from cacovid.records import TokenGrid
from cacovid.seeding import derive_seed

FRAMES: Final = 64
HOURS: Final = 8
HOUR: Final = FRAMES // HOURS  # frames of one
GRID: Final = TokenGrid(FRAMES, SIDE, SIDE)
GLIMPSED: Final = 4  # objects 0-3
GLIMPSE: Final = (2, 4)  # frames that one is seen, fewest and most
STAYING: Final = 2  # objects 4-5
MOVED: Final = 2  # objects 6-7
OBJECTS: Final = GLIMPSED + STAYING + MOVED
FIRST_MOVED: Final = GLIMPSED + STAYING
SIGN: Final = 3  # syllables
DIRECTIONS: Final = ("left", "right", "up", "down")

NO_KIND: Final = glyphs.NO_KIND + len(glyphs.SYLLABLES)
NO_COLOUR: Final = glyphs.NO_COLOUR + 1
_LIGHT = np.array(
    [(8, 8, 62), (8, 42, 74), (6, 62, 48), (20, 74, 14), (52, 70, 8), (74, 46, 8), (78, 16, 18), (66, 8, 54)],
    dtype=np.float32,
)
_CLUTTER_CHANGE = 0.4  # probability that a cell's tile gives way to another, or to none, per frame

Integers = npt.NDArray[np.int64]
Taken = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scene:
    """A drawn clip with its ground truth."""

    seed: int
    frames: npt.NDArray[np.uint8]  # (T, 96, 96, 3) RGB
    objects: tuple[SceneObject, ...]
    directions: tuple[int, ...]  # where each of the moved objects went, index into DIRECTIONS
    alike: tuple[int, ...]  # the glimpsed objects of one colour, 1 to 4; no two others share theirs
    sign: tuple[int, ...]  # indices into glyphs.SYLLABLES, from left to right
    sign_tokens: tuple[tuple[int, ...], ...]  # video tokens that show each syllable
    kinds: Integers  # (T, S) class of each cell
    colours: Integers  # (T, S)

    def halves(self, moved: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens of a moved object before and after it went."""
        tokens = self.objects[moved].tokens
        early = tuple(token for token in tokens if token < GRID.tokens // 2)
        return early, tokens[len(early) :]


def hour_of(token: int) -> int:
    """The hour of a video token, from 0."""
    return token // CELLS // HOUR


def draw_scene(seed: int, glimpse: tuple[int, int] = GLIMPSE) -> Scene:
    """The scene of a seed; the same on every machine."""
    random = np.random.default_rng(derive_seed("embedded scene", seed))
    taken = np.zeros((FRAMES, CELLS), dtype=bool)
    moves = [_moved_track(random, taken) for _ in range(MOVED)]
    sign_tokens = _sign_tokens(random, taken)
    glimpses = [
        _within(hour, object_track(random, _hour(taken, hour), glimpse))
        for hour in random.permutation(HOURS)[:GLIMPSED]
    ]
    stays = [object_track(random, taken, (FRAMES // 2, 3 * FRAMES // 4)) for _ in range(STAYING)]
    alike = tuple(sorted(random.permutation(GLIMPSED)[: random.integers(1, GLIMPSED + 1)].tolist()))
    shapes, shades = random.permutation(len(glyphs.SHAPES)), random.permutation(len(glyphs.COLOUR_NAMES))
    objects = tuple(
        SceneObject(int(shapes[index]), int(shades[alike[0] if index in alike else index]), tuple(track))
        for index, track in enumerate([*glimpses, *stays, *(track for track, _ in moves)])
    )
    sign = tuple(random.permutation(len(glyphs.SYLLABLES))[:SIGN].tolist())
    kind, tone = _clutter(random, taken)
    for one in objects:
        kind.flat[list(one.tokens)], tone.flat[list(one.tokens)] = one.shape, one.colour
    for syllable, tokens in zip(sign, sign_tokens, strict=True):
        kind.flat[list(tokens)], tone.flat[list(tokens)] = glyphs.NO_KIND + syllable, glyphs.NO_COLOUR
    frames = render(random, kind, tone, NO_KIND, _LIGHT.repeat(HOUR, axis=0))
    directions = tuple(direction for _, direction in moves)
    return Scene(seed, frames, objects, directions, alike, sign, sign_tokens, kind, tone)


def _hour(taken: Taken, hour: int) -> Taken:
    """A view of one hour's frames."""
    return taken[hour * HOUR : (hour + 1) * HOUR]


def _within(hour: int, track: list[int]) -> list[int]:
    return [-1] * (hour * HOUR) + track + [-1] * ((HOURS - 1 - hour) * HOUR)


def _moved_track(random: np.random.Generator, taken: Taken) -> tuple[list[int], int]:
    """An object that stands at one place and later two cells or more to one side of it; where it went."""
    half = FRAMES // 2
    while True:
        direction = int(random.integers(len(DIRECTIONS)))
        near, far = sorted(random.permutation(SIDE)[:2].tolist())
        across = int(random.integers(SIDE))
        start, end = (far, near) if DIRECTIONS[direction] in ("left", "up") else (near, far)
        cells = [across * SIDE + at if direction < 2 else at * SIDE + across for at in (start, end)]
        if far - near >= 2 and not taken[:half, cells[0]].any() and not taken[half:, cells[1]].any():
            break
    track = [-1] * FRAMES
    for part, cell in enumerate(cells):
        length = int(random.integers(half // 3, 2 * half // 3 + 1))
        first = part * half + int(random.integers(half - length + 1))
        track[first : first + length] = [cell] * length
        taken[first : first + length, cell] = True
    return track, direction


def _sign_tokens(random: np.random.Generator, taken: Taken) -> tuple[tuple[int, ...], ...]:
    """Each syllable's tokens: three cells side by side in one half of a row, each lit in its own hour."""
    while True:
        first = int(random.integers(SIDE)) * SIDE + SIGN * int(random.integers(SIDE // SIGN))
        hours = random.permutation(HOURS)[:SIGN].tolist()
        lengths = random.integers(1, 4, size=SIGN)
        starts = [
            hour * HOUR + int(random.integers(HOUR - length + 1)) for hour, length in zip(hours, lengths, strict=True)
        ]
        spans = [
            (slice(start, start + length), first + place)
            for place, (start, length) in enumerate(zip(starts, lengths.tolist(), strict=True))
        ]
        if not any(taken[span].any() for span in spans):
            break
    for span in spans:
        taken[span] = True
    return tuple(tuple(frame * CELLS + cell for frame in range(when.start, when.stop)) for when, cell in spans)


def _clutter(random: np.random.Generator, taken: Taken) -> tuple[Integers, Integers]:
    """Kinds and colours (T, S) of clutter: half of all free cells, a tile for 2.5 frames on average."""
    tile = (random.random((FRAMES, CELLS)) < _CLUTTER_CHANGE).cumsum(axis=0)  # a cell's how many-eth tile
    cells = np.arange(CELLS)
    label = len(glyphs.SHAPES) + random.integers(glyphs.GLYPHS, size=(FRAMES + 1, CELLS))[tile, cells]
    shade = len(glyphs.COLOURS) + random.integers(len(glyphs.CLUTTER_COLOURS), size=(FRAMES + 1, CELLS))[tile, cells]
    empty = (random.random((FRAMES + 1, CELLS)) < 0.5)[tile, cells] | taken
    return np.where(empty, NO_KIND, label), np.where(empty, NO_COLOUR, shade)
