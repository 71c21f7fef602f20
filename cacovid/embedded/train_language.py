"""Stage B: the language model learns to answer from any subset of the tower's tokens.

It works on cached features. Auxiliary losses lay down the steps of an answer one layer after another:
the answer at the asked word (layer 2), each option's letter (layer 2), which option matches (layer 3),
the answer at the last position (layer 3). Without those on the options the letters stay at chance.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlavaOnevisionForConditionalGeneration

from cacovid.embedded import language_batch as batches
from cacovid.embedded.clips import GRID
from cacovid.embedded.corpus import Corpus
from cacovid.embedded.fitting import SMOOTHED, fit
from cacovid.embedded.language_batch import BLOCK, LAST, LETTER, NAMED, OPTION_WORDS, QuestionBatch
from cacovid.embedded.model import WIDTH
from cacovid.embedded.packed import read_packed
from cacovid.embedded.progress import Progress, silent
from cacovid.embedded.questions import LETTERS
from cacovid.embedded.schedule import flat_cosine
from cacovid.embedded.tokenizer import TURN_END, VOCABULARY
from cacovid.embedded.train_tower import video_features
from cacovid.seeding import derive_seed, generator

_CLIPS_AT_ONCE = 32  # through the frozen tower
_EMBEDDING_STD = 0.12
_EMBEDDING_PULL = 2.0
_LETTER_IDS = torch.tensor([VOCABULARY[letter] for letter in LETTERS])


@dataclass(frozen=True)
class LanguageTraining:
    """Hyper-parameters of stage B."""

    steps: int = 1_500
    clips: int = 16  # a step
    questions: int = 8  # a clip
    lr: float = 2e-3
    weight_decay: float = 0.01
    warmup: int = 60
    flat: float = 0.55  # share of the steps before the cosine
    easy: float = 0.5  # share of the steps whose batches are easy
    everything: float = 0.1  # share of the other batches that keep all tokens
    answer_at_word: float = 0.7  # weights of the auxiliary losses
    answer_at_last: float = 0.5
    letter_at_option: float = 0.3
    option_matches: float = 1.0
    turn_end: float = 0.1


LEARN = LanguageTraining()
# A needle among all 288 tokens is the hardest case, and features of clips that the tower was trained on are cleaner
# than others: the last steps see mostly whole clips, and new ones.
FINISH = LanguageTraining(steps=500, lr=1.5e-3, warmup=20, flat=0.2, easy=0.0, everything=0.5)


@dataclass(frozen=True)
class FeatureCache:
    """The tower's view of a corpus."""

    features: Tensor  # (C, N, D) float16
    owners: Tensor  # (C, N) int64
    objects: Tensor  # (C, 8, 2) int64


@torch.no_grad()
def cache_features(model: LlavaOnevisionForConditionalGeneration, corpus: Corpus) -> FeatureCache:
    """Run the frozen tower over all clips."""
    parts = [video_features(model, frames).half() for frames in corpus.frames.split(_CLIPS_AT_ONCE)]
    return FeatureCache(torch.cat(parts), corpus.owners, corpus.objects)


@torch.no_grad()
def place_word_embeddings(model: LlavaOnevisionForConditionalGeneration, cache: FeatureCache, seed: int) -> None:
    """Draw all word embeddings anew and pull those of shapes and colours towards their tokens' mean feature."""
    weight = model.get_input_embeddings().weight
    weight.copy_(_EMBEDDING_STD * torch.randn(weight.shape, generator=generator("word embeddings", seed)))
    shown = cache.owners >= 0
    features = cache.features[shown].float()
    owner_classes = cache.objects.gather(1, cache.owners.clamp(min=0)[..., None].expand(-1, -1, 2))[shown]
    centre = features.mean(0)
    for attribute, words in enumerate(batches.WORDS):
        for index, word in enumerate(words.tolist()):
            direction = features[owner_classes[:, attribute] == index].mean(0) - centre
            weight[word] += _EMBEDDING_PULL * direction / direction.norm()


class AnswerSteps(nn.Module):
    """The losses; its own weights (reading the match from a hidden state) are thrown away."""

    def __init__(self, config: LanguageTraining) -> None:
        super().__init__()
        self.config = config
        self.match = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1))

    def forward(
        self, model: LlavaOnevisionForConditionalGeneration, layers: tuple[Tensor, ...], questions: QuestionBatch
    ) -> tuple[Tensor, dict[str, float]]:
        """Weighted loss and metrics.

        Args:
            layers: outputs of layers 2, 3 and 4 (normalised) on the questions, each (B, Q, 18, D).
        """
        second, third, last = layers
        norm, head, weight = model.model.language_model.norm, model.lm_head, questions.weight
        letters = _LETTER_IDS[questions.correct]
        answer_logits = head(last[:, :, LAST])
        options = list(OPTION_WORDS)
        every_letter = _LETTER_IDS.expand(*weight.shape, -1)
        match_logits = self.match(third[:, :, options])[..., 0]
        end = torch.full_like(letters, VOCABULARY[TURN_END])
        terms = {
            "letter": (1.0, answer_logits, letters),
            "answer_at_word": (self.config.answer_at_word, head(norm(second[:, :, NAMED])), questions.answer_word),
            "answer_at_last": (self.config.answer_at_last, head(norm(third[:, :, LAST])), questions.answer_word),
            "option_matches": (self.config.option_matches, match_logits, questions.correct),
            "letter_at_option": (self.config.letter_at_option, head(norm(second[:, :, options])), every_letter),
            "turn_end": (self.config.turn_end, head(last[:, :, LETTER]), end),
        }
        losses = {name: _weighted(logits, target, weight) for name, (_, logits, target) in terms.items()}
        right = ((answer_logits.argmax(-1) == letters).float() * weight).sum() / weight.sum().clamp(min=1)
        total = torch.stack([terms[name][0] * loss for name, loss in losses.items()]).sum()
        return total, {name: float(loss.detach()) for name, loss in losses.items()} | {"accuracy": float(right)}


def _weighted(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, Q, ..., V) and target (B, Q, ...), questions weighted by (B, Q)."""
    loss = cross_entropy(logits.flatten(0, -2), target.flatten(), reduction="none").view(target.shape)
    loss = loss.flatten(2).mean(-1) if loss.ndim > 2 else loss
    return (loss * weight).sum() / weight.sum().clamp(min=1)


def read_layers(
    model: LlavaOnevisionForConditionalGeneration, features: Tensor, kept: Tensor, ids: Tensor
) -> tuple[Tensor, ...]:
    """Run the language model on retained features (B, k, D) and questions (B, Q, 18).

    Returns:
        Outputs of layers 2, 3 and 4 on the questions, each (B, Q, 18, D); the last one is normalised.
    """
    questions = ids.shape[1]
    lengths = [BLOCK] * questions
    layers = read_packed(model, features, kept, ids.flatten(1, 2), lengths, GRID.tokens)
    return tuple(layer.unflatten(1, (questions, BLOCK)) for layer in layers)


def train_language(
    model: LlavaOnevisionForConditionalGeneration,
    cache: FeatureCache,
    config: LanguageTraining,
    seed: int,
    progress: Progress = silent,
    stage: str = "language",
) -> dict[str, float]:
    """Train the language model and the newline row in place; returns the last metrics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("answer steps", stage, seed))
        steps = AnswerSteps(config)
    draw = generator("language batches", stage, seed)
    parameters = [*model.model.language_model.parameters(), model.model.image_newline, *steps.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay)
    factor = flat_cosine(config.steps, flat=config.flat, warmup=config.warmup)

    def loss_of(step: int) -> tuple[Tensor, Mapping[str, float]]:
        chosen = torch.randint(0, len(cache.owners), (config.clips,), generator=draw)
        easy = step < config.easy * config.steps
        retention = batches.sample_retention(cache.owners[chosen], draw, easy=easy, everything=config.everything)
        questions = batches.sample_questions(cache.objects[chosen], retention.asking, config.questions, draw)
        features = cache.features[chosen[:, None], retention.kept].float()
        loss, metrics = steps(model, read_layers(model, features, retention.kept, questions.ids), questions)
        return loss, metrics

    return fit(stage, config.steps, optimizer, factor, loss_of, progress, newest=SMOOTHED)
