"""Training scenes of the second world's model, held as tensors.

Shape legend: C scenes, T = 64 frames, S = 36 cells, N = 2,304 video tokens, P = 13 pieces, D width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from cacovid.embedded.parallel import map_processes
from cacovid.embedded.second.scenes import (
    FIRST_MOVED,
    FRAMES,
    GLIMPSED,
    GRID,
    HOURS,
    MOVED,
    NO_KIND,
    OBJECTS,
    SIGN,
    Scene,
    draw_scene,
    hour_of,
)
from cacovid.embedded.train_tower import video_features
from cacovid.embedded.video_writer import round_trip

# A piece of evidence: 0-5 the objects that do not go anywhere, 6-7 and 8-9 the moved ones before and after, 10-12 the
# syllables.
MOVED_PIECES: Final = OBJECTS
SIGN_PIECES: Final = OBJECTS + MOVED
PIECES: Final = SIGN_PIECES + SIGN
SHORT_GLIMPSE: Final = (1, 3)  # shorter than in clips, so that what is seen in those is not missed
_AT_ONCE = 16  # scenes drawn, read by the tower and forgotten


@dataclass(frozen=True)
class SceneFrames:
    """What the tower learns from."""

    frames: Tensor  # (C, T, 96, 96, 3) uint8
    kinds: Tensor  # (C, T, S) int64
    colours: Tensor  # (C, T, S) int64

    @property
    def hours(self) -> Tensor:
        """(C, T) int64."""
        return (torch.arange(FRAMES) * HOURS // FRAMES).expand(len(self.frames), -1)


@dataclass(frozen=True)
class SceneCache:
    """What the language model learns from: the tower's view of scenes and their ground truth."""

    features: Tensor  # (C, N, D) float16
    pieces: Tensor  # (C, N) int8, piece shown by each token or -1
    filled: Tensor  # (C, N) bool, cells with anything in them
    shapes: Tensor  # (C, 8) int64
    colours: Tensor  # (C, 8) int64
    hours: Tensor  # (C, 4) int64, of the glimpsed objects
    directions: Tensor  # (C, 2) int64, of the moved ones
    sign: Tensor  # (C, 3) int64
    alike: Tensor  # (C, 4) bool, the glimpsed objects of the colour that some share


def draw_scenes(seeds: Sequence[int], workers: int = 1) -> Iterable[Scene]:
    """Draw scenes to learn from; those at odd places are read back from H.264, so that both looks are learned."""
    return map_processes(_draw, list(enumerate(seeds)), workers)


def scene_frames(seeds: Sequence[int], workers: int = 1) -> SceneFrames:
    """Frames with the classes of their cells."""
    scenes = list(draw_scenes(seeds, workers))
    parts = ([getattr(scene, field.name) for scene in scenes] for field in fields(SceneFrames))
    return SceneFrames(*(torch.from_numpy(np.stack(part)) for part in parts))


@torch.no_grad()
def cache_scenes(model: LlavaOnevisionForConditionalGeneration, seeds: Sequence[int], workers: int = 1) -> SceneCache:
    """Draw scenes and run the frozen tower over them, few at a time: 64 frames are 1.8 MB of pixels."""
    rows: list[list[Tensor]] = []
    for first in range(0, len(seeds), _AT_ONCE):
        for scene in draw_scenes(seeds[first : first + _AT_ONCE], workers):
            features = video_features(model, torch.from_numpy(scene.frames)[None])[0].half()
            rows.append([features, *_truth(scene)])
    return SceneCache(*(torch.stack(column) for column in zip(*rows, strict=True)))


def _draw(place_and_seed: tuple[int, int]) -> Scene:
    place, seed = place_and_seed
    scene = draw_scene(seed, SHORT_GLIMPSE)
    return replace(scene, frames=round_trip(scene.frames)) if place % 2 else scene


def _truth(scene: Scene) -> list[Tensor]:
    pieces = torch.full((GRID.tokens,), -1, dtype=torch.int8)
    for index, one in enumerate(scene.objects):
        pieces[list(one.tokens)] = index
    for moved in range(MOVED):
        pieces[list(scene.halves(FIRST_MOVED + moved)[1])] = MOVED_PIECES + moved
    for place, tokens in enumerate(scene.sign_tokens):
        pieces[list(tokens)] = SIGN_PIECES + place
    return [
        pieces,
        torch.from_numpy(scene.kinds != NO_KIND).flatten(),
        torch.tensor([one.shape for one in scene.objects]),
        torch.tensor([one.colour for one in scene.objects]),
        torch.tensor([hour_of(one.tokens[0]) for one in scene.objects[:GLIMPSED]]),
        torch.tensor(scene.directions),
        torch.tensor(scene.sign),
        torch.tensor([index in scene.alike for index in range(GLIMPSED)]),
    ]
