"""Stage A: the vision tower and projector learn what each cell shows.

Throwaway linear heads on every pooled token (36 a frame) tell its kind, colour, row and column; they
make the language model's task one of looking up rather than of seeing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaOnevisionForConditionalGeneration

from cacovid.embedded import glyphs
from cacovid.embedded.fitting import fit
from cacovid.embedded.model import WIDTH, pixels
from cacovid.embedded.progress import Progress, silent
from cacovid.embedded.rendering import CELLS, SIDE
from cacovid.embedded.schedule import flat_cosine
from cacovid.seeding import derive_seed, generator

_OBJECT_WEIGHT = 2.0
_NOTHING_WEIGHT = 0.15
_HOUR_WEIGHT = 0.5


@dataclass(frozen=True)
class TowerTraining:
    """Hyper-parameters of stage A."""

    steps: int = 1_030
    frames: int = 64  # a step
    lr: float = 2e-3
    weight_decay: float = 0.01
    flat: float = 0.4  # share of the steps before the cosine
    place_weight: float = 0.2  # of the losses of row and column
    smoothing: float = 0.0  # of labels: tokens of one class come to look alike


class Cells(Protocol):
    """Clips whose cells are known."""

    @property
    def frames(self) -> Tensor:
        """(C, T, 96, 96, 3) uint8."""
        ...

    @property
    def kinds(self) -> Tensor:
        """(C, T, S) int64."""
        ...

    @property
    def colours(self) -> Tensor:
        """(C, T, S) int64."""
        ...

    @property
    def hours(self) -> Tensor:
        """(C, T) int64, zeros where the light tells none."""
        ...


@dataclass(frozen=True)
class Classes:
    """How many a world's cells have."""

    kinds: int = glyphs.KINDS
    colours: int = glyphs.COLOUR_CLASSES
    hours: int = 1


class CellHeads(nn.Module):
    """Kind, colour, row, column and hour of a token, from its feature (..., D)."""

    def __init__(self, classes: Classes, config: TowerTraining) -> None:
        super().__init__()
        self.config = config
        self.kind = nn.Linear(WIDTH, classes.kinds)
        self.colour = nn.Linear(WIDTH, classes.colours)
        self.row = nn.Linear(WIDTH, SIDE)
        self.column = nn.Linear(WIDTH, SIDE)
        self.hour = nn.Linear(WIDTH, classes.hours)
        self.register_buffer("kind_weights", _class_weights(len(glyphs.SHAPES), classes.kinds))
        self.register_buffer("colour_weights", _class_weights(len(glyphs.COLOURS), classes.colours))

    def forward(
        self, features: Tensor, kinds: Tensor, colours: Tensor, hours: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and the accuracies on objects, for features (F, S, D), classes (F, S) and hours (F,)."""
        kind_logits, colour_logits = self.kind(features).flatten(0, 1), self.colour(features).flatten(0, 1)
        hour_logits = self.hour(features).flatten(0, 1)
        kinds, colours, hours = kinds.flatten(), colours.flatten(), hours.repeat_interleave(CELLS)
        cell = torch.arange(CELLS).repeat(len(features))
        smoothed = partial(cross_entropy, label_smoothing=self.config.smoothing)
        loss = smoothed(kind_logits, kinds, self.get_buffer("kind_weights"))
        loss = loss + smoothed(colour_logits, colours, self.get_buffer("colour_weights"))
        loss = loss + self.config.place_weight * smoothed(self.row(features).flatten(0, 1), cell // SIDE)
        loss = loss + self.config.place_weight * smoothed(self.column(features).flatten(0, 1), cell % SIDE)
        loss = loss + _HOUR_WEIGHT * smoothed(hour_logits, hours)  # 0 where there is one class
        shown = kinds < len(glyphs.SHAPES)
        metrics = {
            "loss": float(loss.detach()),
            "shape": float((kind_logits.argmax(-1) == kinds)[shown].float().mean()),
            "color": float((colour_logits.argmax(-1) == colours)[shown].float().mean()),
            "hour": float((hour_logits.argmax(-1) == hours)[shown].float().mean()),
        }
        return loss, metrics


def _class_weights(objects: int, classes: int) -> Tensor:
    weights = torch.ones(classes)
    weights[:objects] = _OBJECT_WEIGHT
    weights[-1] = _NOTHING_WEIGHT
    return weights


def video_features(model: LlavaOnevisionForConditionalGeneration, frames: Tensor) -> Tensor:
    """Projected tokens (B, N, D) of clips (B, T, H, W, 3) uint8, without the newline row."""
    output: Tensor = model.model.get_video_features(pixels(frames), return_dict=True).pooler_output
    return output[:, :-1]


def train_tower(
    model: LlavaOnevisionForConditionalGeneration,
    corpus: Cells,
    config: TowerTraining,
    seed: int,
    progress: Progress = silent,
    classes: Classes | None = None,
) -> dict[str, float]:
    """Train tower and projector in place, rescale the features to unit deviation, return the last metrics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("cell heads", seed))
        heads = CellHeads(classes or Classes(), config)
    draw = generator("tower batches", seed)
    parts: list[nn.Module] = [model.model.vision_tower, model.model.multi_modal_projector, heads]
    parameters = [parameter for part in parts for parameter in part.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    labels = (corpus.kinds, corpus.colours, corpus.hours)
    frames, kinds, colours, hours = (part.flatten(0, 1) for part in (corpus.frames, *labels))
    order = torch.empty(0, dtype=torch.int64)

    def loss_of(_: int) -> tuple[Tensor, Mapping[str, float]]:
        nonlocal order
        if len(order) < config.frames:
            order = torch.randperm(len(frames), generator=draw)
        batch, order = order[: config.frames], order[config.frames :]
        features = video_features(model, frames[batch].unsqueeze(1)).unflatten(1, (-1, CELLS)).flatten(0, 1)
        loss, metrics = heads(features, kinds[batch], colours[batch], hours[batch])
        return loss, metrics

    factor = flat_cosine(config.steps, flat=config.flat)
    metrics = fit("tower", config.steps, optimizer, factor, loss_of, progress)
    _normalise(model, frames[: 8 * config.frames])
    return metrics


@torch.no_grad()
def _normalise(model: LlavaOnevisionForConditionalGeneration, frames: Tensor) -> None:
    """Divide the projector's output by its standard deviation on ``frames`` (F, H, W, 3)."""
    last = model.model.multi_modal_projector.linear_2
    deviation = video_features(model, frames.unsqueeze(1)).std()
    last.weight.div_(deviation)
    last.bias.div_(deviation)
