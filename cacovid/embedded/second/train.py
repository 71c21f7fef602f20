"""The second world's language model: world 1's, which already finds an object by its name, learns to reason.

Auxiliary losses lay down the steps of an answer: the word of an object finds its hour, or where it went, and the word
of a colour finds how many there are (layer 2); the last position finds the answer one layer early (layer 3).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from transformers import LlavaOnevisionForConditionalGeneration

from cacovid.embedded.fitting import SMOOTHED, fit
from cacovid.embedded.model import WIDTH
from cacovid.embedded.packed import read_packed
from cacovid.embedded.progress import Progress, silent
from cacovid.embedded.schedule import flat_cosine
from cacovid.embedded.second.batches import FOUND, LETTER_IDS, STEPS, Batch, sample_batch, sample_retention
from cacovid.embedded.second.corpus import PIECES, SceneCache
from cacovid.embedded.second.scenes import GRID
from cacovid.embedded.tokenizer import SECOND_VOCABULARY, TURN_END
from cacovid.seeding import derive_seed, generator

LAYERS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Stage:
    """Hyper-parameters of one part of the curriculum."""

    name: str
    steps: int
    scenes: int  # a step
    fewest: float  # share of the tokens retained, log-uniform from here
    most: float  # to here
    sure: float  # probability that a piece of evidence has a token retained whatever the share
    objects: float = 1.0  # what objects' tokens are liked more than others, in logits: each scene draws from here
    most_objects: float = 1.0  # to here
    most_filled: float = 0.0  # the same for all cells with anything in them, from 0 to here
    everything: float = 0.0  # share of the steps that retain all tokens
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 30
    flat: float = 0.5
    kept_lr: float = 0.2  # the share of lr for words and the first layer's attention, which start as a look-up
    found_weight: float = 0.3
    step_weight: float = 0.7
    early_weight: float = 0.5
    letter_weight: float = 0.3
    end_weight: float = 0.1


class SceneLosses(nn.Module):
    """The losses; its own weights (reading a step from a hidden state) are thrown away."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage = stage
        self.found = nn.ModuleDict({kind: nn.Linear(WIDTH, classes) for kind, classes in FOUND.items()})
        self.steps = nn.ModuleDict({kind: nn.Linear(WIDTH, classes) for kind, classes in STEPS.items()})

    def forward(
        self, model: LlavaOnevisionForConditionalGeneration, layers: tuple[Tensor, ...], batch: Batch, shown: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Weighted loss and metrics.

        Args:
            layers: outputs of layers 1, 2, 3 and 4 (normalised) on the questions, each (B, Lq, D).
            shown: (B, P) bool, the pieces with a retained token.
        """
        first, second, third, last = layers
        norm, head = model.model.language_model.norm, model.lm_head
        metrics: dict[str, float] = {}
        total = last.new_zeros(())
        for asked, anchors, answers in zip(batch.asked, batch.anchors, batch.answers, strict=True):
            weight = (shown | ~asked.pieces).all(1).float()
            logits = head(last[:, answers - 1])
            end = torch.full_like(asked.answer[:, :1], SECOND_VOCABULARY[TURN_END])
            loss = _weighted(logits, asked.answer, weight)
            loss = loss + self.stage.early_weight * _weighted(head(norm(third[:, answers - 1])), asked.answer, weight)
            loss = loss * asked.answer.shape[1]  # a sum over the words
            loss = loss + self.stage.end_weight * _weighted(head(last[:, answers[-1:]]), end, weight)
            found = self.found[asked.kind](norm(first[:, anchors]))
            each = binary_cross_entropy_with_logits(found, asked.found, reduction="none").sum(2).mean(1)
            loss = loss + self.stage.found_weight * (each * weight).sum() / weight.sum().clamp(min=1)
            all_found = ((found > 0) == (asked.found > 0)).all(2).float().mean(1)
            metrics[f"{asked.kind}'"] = float((all_found * weight).sum() / weight.sum().clamp(min=1))
            if asked.kind in self.steps:
                step_logits = self.steps[asked.kind](norm(second[:, anchors]))
                loss = loss + self.stage.step_weight * _weighted(step_logits, asked.step, weight)
                if asked.kind == "order":
                    letters = LETTER_IDS.expand(len(weight), -1)
                    loss = loss + self.stage.letter_weight * _weighted(head(norm(second[:, anchors])), letters, weight)
                metrics[f"{asked.kind}*"] = _right(step_logits, asked.step, weight)
            metrics[asked.kind] = _right(logits, asked.answer, weight)
            total = total + loss / len(batch.asked)
        return total, {"loss": float(total.detach())} | metrics


def _weighted(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, A, V) and target (B, A), scenes weighted by (B,)."""
    loss = cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)
    return (loss.mean(1) * weight).sum() / weight.sum().clamp(min=1)


def _right(logits: Tensor, target: Tensor, weight: Tensor) -> float:
    right = (logits.argmax(-1) == target).float().mean(1)
    return float((right * weight).sum() / weight.sum().clamp(min=1))


def train_stage(
    model: LlavaOnevisionForConditionalGeneration,
    cache: SceneCache,
    stage: Stage,
    seed: int,
    progress: Progress = silent,
) -> dict[str, float]:
    """Train the language model and the newline row in place; returns the last metrics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("scene losses", stage.name, seed))
        losses = SceneLosses(stage)
    draw = generator("scene batches", stage.name, seed)
    language = model.model.language_model
    kept = [*language.embed_tokens.parameters(), *language.layers[0].self_attn.parameters()]
    free = [one for one in language.parameters() if all(one is not other for other in kept)]
    groups = [
        {"params": [*free, model.model.image_newline, *losses.parameters()], "lr": stage.lr},
        {"params": kept, "lr": stage.lr * stage.kept_lr},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=stage.weight_decay)
    factor = flat_cosine(stage.steps, flat=stage.flat, warmup=stage.warmup)

    def loss_of(_: int) -> tuple[Tensor, Mapping[str, float]]:
        scenes = torch.randint(0, len(cache.pieces), (stage.scenes,), generator=draw)
        kept = _retained(cache.pieces[scenes], cache.filled[scenes], stage, draw)
        shown = pieces_shown(cache.pieces[scenes].long().gather(1, kept))
        batch = sample_batch(cache, scenes, shown, draw)
        features = cache.features[scenes[:, None], kept].float()
        layers = read_packed(model, features, kept, batch.ids, batch.lengths, GRID.tokens, LAYERS)
        loss, metrics = losses(model, layers, batch, shown)
        return loss, metrics

    return fit(stage.name, stage.steps, optimizer, factor, loss_of, progress, newest=SMOOTHED)


def _retained(pieces: Tensor, filled: Tensor, stage: Stage, draw: torch.Generator) -> Tensor:
    coin, size = torch.rand(2, generator=draw).tolist()
    share = 1.0 if coin < stage.everything else stage.fewest * (stage.most / stage.fewest) ** size
    span = stage.most_objects - stage.objects
    # Drawn where it matters alone: the batches of all other stages are what they were.
    objects, cells = (
        torch.rand(2, len(pieces), 1, generator=draw) if span or stage.most_filled else torch.zeros(2, 1, 1)
    )
    liking = (stage.objects + objects * span) * (pieces >= 0) + cells * stage.most_filled * filled
    return sample_retention(pieces, round(share * pieces.shape[1]), stage.sure, liking, draw)


def pieces_shown(kept: Tensor) -> Tensor:
    """(B, P) bool: which pieces are among the retained tokens' (B, k)."""
    shown = torch.zeros(len(kept), PIECES + 1, dtype=torch.bool)
    return shown.scatter(1, kept + 1, True)[:, 1:]
