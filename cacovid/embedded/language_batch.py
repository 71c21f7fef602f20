"""Batches of stage B: random token retention, and questions packed behind one video prefix.

Shape legend: B clips, Q questions a clip, N video tokens, k retained tokens, 8 objects a clip,
P = 3 + k prefix columns, L = P + 18 Q columns.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from cacovid.embedded.glyphs import COLOUR_NAMES, SHAPES
from cacovid.embedded.questions import LETTERS
from cacovid.embedded.tokenizer import TURN_END, TURN_START, VOCABULARY

_BLOCK: Final = (
    *("what", "color", "is", "the", "color", "object", "A", "color", "B", "color", "C", "color", "D", "color"),
    *(TURN_END, TURN_START, "assistant", "A"),
)
ABOUT, NAMED, OPTION_WORDS, LAST, LETTER = 1, 4, (7, 9, 11, 13), 16, 17  # columns of a block
BLOCK: Final = len(_BLOCK)
WORDS: Final = torch.tensor([[VOCABULARY[word] for word in words] for words in (SHAPES, COLOUR_NAMES)])  # (2, 9)
_ABOUT_WORDS = torch.tensor([VOCABULARY["shape"], VOCABULARY["color"]])
_LETTER_WORDS = torch.tensor([VOCABULARY[letter] for letter in LETTERS])

_OBJECT_BIAS = 2.0  # added to an object token's Gumbel key
_FOCUS_BIAS = 50.0
_FEWEST = 5


@dataclass(frozen=True)
class Retention:
    """Which tokens are retained and which objects are asked for how often."""

    kept: Tensor  # (B, k) int64 ascending
    asking: Tensor  # (B, 8) float32, relative frequency; 0 for an object without a retained token


@dataclass(frozen=True)
class QuestionBatch:
    """Questions as token ids; attribute 0 is the shape, 1 the colour."""

    ids: Tensor  # (B, Q, 18) int64
    answer_word: Tensor  # (B, Q) int64 token id
    correct: Tensor  # (B, Q) int64 option index
    weight: Tensor  # (B, Q) float32, 1, or 0 where nothing could be asked


def sample_retention(owners: Tensor, draw: torch.Generator, *, easy: bool, everything: float) -> Retention:
    """Retain tokens of clips with owners (B, N).

    Easy batches mostly keep 12-35 %, biased to objects. Others keep everything with the probability given, else
    log-uniform 1.7-50 %, at least 5: four in ten clips at random, three object-biased, and three "focus" (one to
    three objects before all else, the only ones asked for).
    """
    batch, tokens = owners.shape
    coin, size = torch.rand(2, generator=draw).tolist()
    if easy and coin < 0.85:
        bias = _OBJECT_BIAS * (owners >= 0)
        return _retain(owners, bias, round((0.12 + 0.23 * size) * tokens), torch.ones(batch, 8), draw)
    if torch.rand((), generator=draw) < everything:
        return _retain(owners, torch.zeros(owners.shape), tokens, torch.ones(batch, 8), draw)
    count = max(_FEWEST, round(0.017 * (0.5 / 0.017) ** size * tokens))
    kind = torch.multinomial(torch.tensor([0.35, 0.25, 0.30]), batch, replacement=True, generator=draw)
    focused = torch.rand(batch, 8, generator=draw).argsort(dim=1) < torch.randint(1, 4, (batch, 1), generator=draw)
    focused_tokens = (owners >= 0) & focused.gather(1, owners.clamp(min=0))
    bias = _OBJECT_BIAS * ((owners >= 0) & (kind == 1)[:, None]) + _FOCUS_BIAS * (focused_tokens & (kind == 2)[:, None])
    return _retain(owners, bias, count, (focused | (kind != 2)[:, None]).float(), draw)


def _retain(owners: Tensor, bias: Tensor, count: int, wanted: Tensor, draw: torch.Generator) -> Retention:
    """The ``count`` tokens of largest Gumbel key plus bias (B, N).

    Wanted objects (B, 8) are asked for in inverse proportion to the root of their retained tokens: rare ones are hard.
    """
    uniform = torch.rand(owners.shape, generator=draw).clamp(1e-9, 1 - 1e-7)
    kept = (bias - torch.log(-torch.log(uniform))).topk(count, dim=1).indices.sort(dim=1).values
    shown = torch.zeros(len(owners), 9)
    shown.scatter_add_(1, owners.gather(1, kept) + 1, torch.ones(kept.shape))
    visible = shown[:, 1:]
    return Retention(kept, torch.where(visible > 0, wanted / visible.clamp(min=1).sqrt(), 0.0))


def sample_questions(objects: Tensor, asking: Tensor, count: int, draw: torch.Generator) -> QuestionBatch:
    """``count`` questions a clip about objects (B, 8, 2) as often as ``asking`` (B, 8); options are shuffled."""
    batch = len(objects)
    possible = asking + 1e-6  # a clip without any is asked at random, with weight 0
    asked = torch.multinomial(possible, count, replacement=True, generator=draw)
    about = torch.randint(0, 2, (batch, count), generator=draw)
    keys = torch.rand(batch, count, 8, generator=draw).scatter_(2, asked[..., None], 2.0)
    options = keys.topk(len(LETTERS), dim=2).indices  # the asked object comes first
    order = torch.rand(batch, count, len(LETTERS), generator=draw).argsort(dim=2)
    options = options.gather(2, order)
    correct = (order == 0).int().argmax(dim=2)
    rows = torch.arange(batch)[:, None]
    classes = objects[rows, asked]  # (B, Q, 2)
    named = WORDS[1 - about, classes.gather(2, (1 - about)[..., None])[..., 0]]
    answer_word = WORDS[about, classes.gather(2, about[..., None])[..., 0]]
    option_classes = objects[rows[..., None], options].gather(3, about[..., None, None].expand(*options.shape, 1))[
        ..., 0
    ]
    ids = torch.tensor([VOCABULARY[word] for word in _BLOCK]).repeat(batch, count, 1)
    ids[..., ABOUT], ids[..., NAMED] = _ABOUT_WORDS[about], named
    ids[..., list(OPTION_WORDS)] = WORDS[about[..., None], option_classes]
    ids[..., LETTER] = _LETTER_WORDS[correct]
    return QuestionBatch(ids, answer_word, correct, (asking.gather(1, asked) > 0).float())
