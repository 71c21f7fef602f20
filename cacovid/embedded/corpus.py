"""Training clips of the tiny Video-LLM, held as tensors.

Shape legend: C clips, T = 8 frames, S = 36 cells a frame, N = T * S video tokens, 8 objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cacovid.embedded.clips import Clip, draw_clip
from cacovid.embedded.parallel import map_processes
from cacovid.embedded.video_writer import round_trip


@dataclass(frozen=True)
class Corpus:
    """Clips with their ground truth."""

    frames: Tensor  # (C, T, 96, 96, 3) uint8
    kinds: Tensor  # (C, T, S) int64, classes of glyphs
    colours: Tensor  # (C, T, S) int64
    owners: Tensor  # (C, N) int64, object shown by each token or -1
    objects: Tensor  # (C, 8, 2) int64, shape and colour of each object

    @property
    def hours(self) -> Tensor:
        """(C, T) int64: the light tells none."""
        return torch.zeros(self.kinds.shape[:2], dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.frames)


def draw_corpus(seeds: Sequence[int], workers: int = 1) -> Corpus:
    """Draw clips; those at odd places are read back from H.264, so that both looks are learned."""
    clips = list(map_processes(_draw, list(enumerate(seeds)), workers))
    return Corpus(
        frames=torch.from_numpy(np.stack([clip.frames for clip in clips])),
        kinds=torch.from_numpy(np.stack([clip.kinds for clip in clips])),
        colours=torch.from_numpy(np.stack([clip.colours for clip in clips])),
        owners=torch.from_numpy(np.stack([clip.owners() for clip in clips])),
        objects=torch.tensor([[(one.shape, one.colour) for one in clip.objects] for clip in clips]),
    )


def _draw(place_and_seed: tuple[int, int]) -> Clip:
    place, seed = place_and_seed
    clip = draw_clip(seed)
    return replace(clip, frames=round_trip(clip.frames)) if place % 2 else clip
