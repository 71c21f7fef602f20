"""Batches of stage B: random token retention, and questions packed behind one video prefix.

Shape legend: B clips, Q questions a clip, N video tokens, k retained tokens, 8 objects a clip,
P = 3 + k prefix columns, L = P + 18 Q columns.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from cacovid.embedded.clips import GRID
from cacovid.embedded.glyphs import COLOUR_NAMES, SHAPES
from cacovid.embedded.questions import LETTERS
from cacovid.embedded.tokenizer import TURN_END, TURN_START, VOCABULARY

PREFIX: Final = tuple(VOCABULARY[token] for token in (TURN_START, "user"))
NEWLINE_POSITION: Final = len(PREFIX) + GRID.tokens
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
    """Which tokens are retained and which objects may be asked for."""

    kept: Tensor  # (B, k) int64 ascending
    askable: Tensor  # (B, 8) bool


@dataclass(frozen=True)
class QuestionBatch:
    """Questions as token ids; attribute 0 is the shape, 1 the colour."""

    ids: Tensor  # (B, Q, 18) int64
    answer_word: Tensor  # (B, Q) int64 token id
    correct: Tensor  # (B, Q) int64 option index
    weight: Tensor  # (B, Q) float32, 0 where the asked object has no retained token


def sample_retention(owners: Tensor, progress: float, draw: torch.Generator) -> Retention:
    """Retain tokens of clips with owners (B, N) at training progress in [0, 1).

    First half: mostly 12-35 % biased to objects. Second half: log-uniform 1.7-50 %, at least 5, of which
    35 % are random, 25 % object-biased, 30 % "focus" (one to three objects before all else, the only ones
    asked for), 10 % everything.
    """
    batch, tokens = owners.shape
    coin, size = torch.rand(2, generator=draw).tolist()
    if progress < 0.5 and coin < 0.85:
        bias = _OBJECT_BIAS * (owners >= 0)
        return _retain(owners, bias, round((0.12 + 0.23 * size) * tokens), torch.ones(batch, 8, dtype=torch.bool), draw)
    if torch.rand((), generator=draw) < 0.1:
        kept = torch.arange(tokens).expand(batch, -1)
        return Retention(kept, torch.ones(batch, 8, dtype=torch.bool))
    count = max(_FEWEST, round(0.017 * (0.5 / 0.017) ** size * tokens))
    kind = torch.multinomial(torch.tensor([0.35, 0.25, 0.30]), batch, replacement=True, generator=draw)
    focused = torch.rand(batch, 8, generator=draw).argsort(dim=1) < torch.randint(1, 4, (batch, 1), generator=draw)
    focused_tokens = (owners >= 0) & focused.gather(1, owners.clamp(min=0))
    bias = _OBJECT_BIAS * ((owners >= 0) & (kind == 1)[:, None]) + _FOCUS_BIAS * (focused_tokens & (kind == 2)[:, None])
    return _retain(owners, bias, count, focused | (kind != 2)[:, None], draw)


def _retain(owners: Tensor, bias: Tensor, count: int, wanted: Tensor, draw: torch.Generator) -> Retention:
    """The ``count`` tokens of largest Gumbel key plus bias (B, N); askable are wanted objects (B, 8) among them."""
    uniform = torch.rand(owners.shape, generator=draw).clamp(1e-9, 1 - 1e-7)
    kept = (bias - torch.log(-torch.log(uniform))).topk(count, dim=1).indices.sort(dim=1).values
    shown = torch.zeros(len(owners), 9, dtype=torch.bool)
    shown.scatter_(1, owners.gather(1, kept) + 1, True)
    return Retention(kept, shown[:, 1:] & wanted)


def sample_questions(objects: Tensor, askable: Tensor, count: int, draw: torch.Generator) -> QuestionBatch:
    """``count`` questions a clip about askable (B, 8) objects (B, 8, 2); options are other objects', shuffled."""
    batch = len(objects)
    possible = askable.float() + 1e-6  # a clip without any is asked at random, with weight 0
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
    return QuestionBatch(ids, answer_word, correct, askable.gather(1, asked).float())


def packed_positions(kept: Tensor, questions: int) -> Tensor:
    """(B, L) position ids: retained tokens keep their place in the full prompt, all questions begin after it."""
    batch = len(kept)
    block = NEWLINE_POSITION + 1 + torch.arange(BLOCK)
    parts = [
        torch.arange(len(PREFIX)).expand(batch, -1),
        len(PREFIX) + kept,
        torch.full((batch, 1), NEWLINE_POSITION),
        block.repeat(questions).expand(batch, -1),
    ]
    return torch.cat(parts, dim=1)


def packed_mask(retained: int, questions: int) -> Tensor:
    """(1, 1, L, L) bool: a question sees the prefix and itself, causally, and no other question."""
    prefix = len(PREFIX) + retained + 1
    block = torch.cat([torch.full((prefix,), -1), torch.arange(questions).repeat_interleave(BLOCK)])
    columns = torch.arange(len(block))
    seen = (block[None, :] == -1) | (block[None, :] == block[:, None])
    return (seen & (columns[None, :] <= columns[:, None]))[None, None]
