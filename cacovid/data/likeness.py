"""Which videos show the same pictures, though their bytes differ: re-encoded, scaled, another container.

A frame's hash says of 8 x 8 neighbouring patches which is brighter (difference hash, Krawetz 2013). Videos are alike
where the hashes of the frames at the same relative times lie close together on average. An excerpt of a video is
another one.

Shape legend: V videos, F hashed frames of each.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Hashes: TypeAlias = NDArray[np.uint64]

SIDE = 8  # of the patches: 64 bits a frame
NEAR = 6.0  # bits by which frames of one picture may differ on average; of unlike pictures about 28 do
_TELLING = 6  # bits that are set in a frame with some structure: plain frames are alike without being the same
_BAND = 16  # bits; candidates agree in one band of one frame: at 6 of 64 bits apart, 8 frames miss 1 pair in 10,000
_CROWD = 500  # videos that agree in one band: it says nothing


class Alike(NamedTuple):
    """Two videos with the same pictures."""

    first: int
    second: int
    distance: float  # bits a frame


def frame_hashes(frames: NDArray[np.uint8]) -> tuple[int, ...]:
    """(F,) 64-bit hashes of frames (F, height, width, 3)."""
    return tuple(map(_hash, frames))


def _hash(frame: NDArray[np.uint8]) -> int:
    grey = Image.fromarray(frame).convert("L").resize((SIDE + 1, SIDE), Image.Resampling.BOX)
    patches = np.asarray(grey)
    brighter = patches[:, 1:] > patches[:, :-1]
    return int.from_bytes(np.packbits(brighter).tobytes(), "big")


def alike(videos: Sequence[tuple[int, ...]]) -> list[Alike]:
    """Pairs of videos (places in ``videos``) that show the same, from (F,) hashes each; ascending."""
    if not videos:
        return []
    hashes = np.asarray(videos, dtype=np.uint64)
    distinct, place = np.unique(hashes, axis=0, return_inverse=True)
    members: list[list[int]] = [[] for _ in distinct]
    for video, group in enumerate(place.reshape(-1).tolist()):
        members[group].append(video)
    telling = _telling(hashes).sum(axis=1)  # (V,) frames
    found = [Alike(group[0], other, 0.0) for group in members for other in group[1:] if telling[other]]
    for one, two, distance in _near(distinct):
        found += [
            Alike(min(first, second), max(first, second), distance) for first in members[one] for second in members[two]
        ]
    return sorted(found)


def _near(hashes: Hashes) -> list[tuple[int, int, float]]:
    """Pairs of rows of (V, F) distinct hashes that lie close together."""
    found: dict[tuple[int, int], float] = {}
    for first, second in _candidates(hashes):
        telling = _telling(hashes[first]) | _telling(hashes[second])  # (P, F)
        apart = np.where(telling, np.bitwise_count(hashes[first] ^ hashes[second]), 0).sum(axis=1)
        distance = apart / telling.sum(axis=1)  # a candidate agrees in a telling frame
        near = distance <= NEAR
        one, two = np.minimum(first, second)[near].tolist(), np.maximum(first, second)[near].tolist()
        found |= zip(zip(one, two, strict=True), distance[near].tolist(), strict=True)
    return [(one, two, distance) for (one, two), distance in found.items()]


def _candidates(hashes: Hashes) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(P,) and (P,) rows that agree in one band of one telling frame; a pair may come several times."""
    for frame in range(hashes.shape[1]):
        rows = np.flatnonzero(_telling(hashes[:, frame]))
        for shift in range(0, 64, _BAND):
            band = (hashes[rows, frame] >> np.uint64(shift)) & np.uint64(2**_BAND - 1)
            _, group, size = np.unique(band, return_inverse=True, return_counts=True)
            order = np.argsort(group, kind="stable")
            order = order[size[group[order]] <= _CROWD]
            sorted_rows, sorted_groups = rows[order], group[order]
            places, step = np.arange(len(order)), 1
            while len(places := places[places + step < len(order)]):
                places = places[sorted_groups[places] == sorted_groups[places + step]]
                yield sorted_rows[places], sorted_rows[places + step]
                step += 1


def _telling(hashes: Hashes) -> NDArray[np.bool_]:
    """Whether frames have structure to compare."""
    counts = np.bitwise_count(hashes)
    return np.logical_and(counts >= _TELLING, counts <= 64 - _TELLING)
