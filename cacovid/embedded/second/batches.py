"""Batches for the second world's language model: tokens retained at random, five questions a scene.

Shape legend: B scenes, N video tokens, k retained ones, P = 13 pieces, Lq columns of all questions, A answer columns.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from cacovid.embedded.glyphs import COLOUR_NAMES, SHAPES, SYLLABLES
from cacovid.embedded.questions import LETTERS
from cacovid.embedded.second.corpus import MOVED_PIECES, PIECES, SIGN_PIECES, SceneCache
from cacovid.embedded.second.questions import OPTIONS, Kind
from cacovid.embedded.second.scenes import DIRECTIONS, FIRST_MOVED, GLIMPSED, HOURS, MOVED, SIGN
from cacovid.embedded.tokenizer import SECOND_VOCABULARY as VOCABULARY
from cacovid.embedded.tokenizer import TURN_END, TURN_START

_TEMPLATES: Final[dict[Kind, str]] = {
    "order": "which object appears first A _ B _ C _",
    "count": "how many _ objects are there",
    "where": "what color is the _ and where did it go",
    "sign": "what does the sign say",
    "hours": "how many hours from the _ to the _",
}
_GUARANTEED = 50.0  # added to a Gumbel key


def word_ids(words: tuple[str, ...]) -> Tensor:
    """Their token ids."""
    return torch.tensor([VOCABULARY[word] for word in words])


SHAPE_IDS: Final = word_ids(SHAPES)
COLOUR_IDS: Final = word_ids(COLOUR_NAMES)
SYLLABLE_IDS: Final = word_ids(SYLLABLES)
LETTER_IDS: Final = word_ids(LETTERS[:OPTIONS])
_NUMBER_IDS = word_ids(tuple("1234567"))
_DIRECTION_IDS = word_ids(DIRECTIONS)


@dataclass(frozen=True)
class Asked:
    """One question a scene, all of one kind."""

    kind: Kind
    named: Tensor  # (B, blanks) int64, words in the blanks
    answer: Tensor  # (B, A) int64 words
    found: Tensor  # (B, anchors, classes) float32, what the first layer brings an anchor: hours, a colour or syllables
    step: Tensor  # (B, blanks) int64, what follows from it: an hour, a count or a direction
    pieces: Tensor  # (B, P) bool, needed


@dataclass(frozen=True)
class Batch:
    """All questions of a batch, side by side."""

    ids: Tensor  # (B, Lq) int64, with the answers
    lengths: tuple[int, ...]  # columns of each question
    asked: tuple[Asked, ...]
    anchors: tuple[Tensor, ...]  # columns of each question's blanks, or of its word "sign"
    answers: tuple[Tensor, ...]  # columns of each question's answer words


def sample_retention(pieces: Tensor, count: int, sure: float, liking: Tensor, draw: torch.Generator) -> Tensor:
    """(B, k) ascending: ``count`` of the tokens, whose pieces are (B, N).

    Each piece has one of its tokens retained with the probability ``sure``; for the rest a token is exp(``liking``)
    times as likely as one without, (B, N).
    """
    uniform = torch.rand(pieces.shape, generator=draw).clamp(1e-9, 1 - 1e-7)
    keys = liking - torch.log(-torch.log(uniform))
    place = pieces.long() + 1
    best = torch.full((len(pieces), PIECES + 1), -torch.inf).scatter_reduce(1, place, keys, "amax")
    kept_for_sure = torch.rand(len(pieces), PIECES + 1, generator=draw) < sure
    kept_for_sure[:, 0] = False
    keys = keys + _GUARANTEED * ((keys == best.gather(1, place)) & kept_for_sure.gather(1, place))
    return keys.topk(count, dim=1).indices.sort(dim=1).values


def sample_batch(cache: SceneCache, scenes: Tensor, shown: Tensor, draw: torch.Generator) -> Batch:
    """A question of each kind about each scene (B,).

    Objects are counted among the pieces ``shown`` (B, P): one scene teaches several counts.
    """
    asked = [_ask(cache, scenes, shown, kind, draw) for kind in _TEMPLATES]
    ids, lengths, anchors, answers, start = [], [], [], [], 0
    for one in asked:
        words = [*_TEMPLATES[one.kind].split(), TURN_END, TURN_START, "assistant"]
        at = [column for column, word in enumerate(words) if word == "_"]
        block = torch.tensor([VOCABULARY.get(word, 0) for word in words]).repeat(len(scenes), 1)
        block[:, at] = one.named
        ids.append(torch.cat([block, one.answer], dim=1))
        lengths.append(ids[-1].shape[1])
        anchors.append(start + torch.tensor(at or [words.index("sign")]))
        answers.append(start + len(words) + torch.arange(one.answer.shape[1]))
        start += lengths[-1]
    return Batch(torch.cat(ids, dim=1), tuple(lengths), tuple(asked), tuple(anchors), tuple(answers))


def _ask(cache: SceneCache, scenes: Tensor, shown: Tensor, kind: Kind, draw: torch.Generator) -> Asked:
    batch = len(scenes)
    none = torch.empty(batch, 0, dtype=torch.int64)
    if kind == "count":
        alike = cache.alike[scenes]
        color = cache.colours[scenes].gather(1, alike.int().argmax(1, keepdim=True))
        seen = alike & shown[:, :GLIMPSED]
        seen = torch.where(seen.any(1, keepdim=True), seen, alike)  # where none is, the question counts for nothing
        many = seen.sum(1, keepdim=True)
        needed = torch.zeros(batch, PIECES, dtype=torch.bool)
        needed[:, :GLIMPSED] = seen
        found = (one_hot(cache.hours[scenes], HOURS) * seen[..., None]).sum(1, keepdim=True).float()
        return Asked(kind, COLOUR_IDS[color], _NUMBER_IDS[many - 1], found, many - 1, needed)
    if kind == "sign":
        needed = torch.zeros(batch, PIECES, dtype=torch.bool)
        needed[:, SIGN_PIECES:] = True
        found = one_hot(cache.sign[scenes], len(SYLLABLES)).flatten(1).unsqueeze(1).float()
        return Asked(kind, none, SYLLABLE_IDS[cache.sign[scenes]], found, none, needed)
    if kind == "where":
        moved = torch.randint(0, MOVED, (batch, 1), generator=draw)
        went = cache.directions[scenes].gather(1, moved)
        color = cache.colours[scenes].gather(1, FIRST_MOVED + moved)
        named = SHAPE_IDS[cache.shapes[scenes].gather(1, FIRST_MOVED + moved)]
        answer = torch.cat([COLOUR_IDS[color], _DIRECTION_IDS[went]], dim=1)
        found = one_hot(color, len(COLOUR_NAMES)).float()
        pieces = _marked(torch.cat([FIRST_MOVED + moved, MOVED_PIECES + moved], dim=1))
        return Asked(kind, named, answer, found, went, pieces)
    chosen = torch.rand(batch, GLIMPSED, generator=draw).argsort(1)[:, : OPTIONS if kind == "order" else 2]
    hours = cache.hours[scenes].gather(1, chosen)
    if kind == "hours":
        hours, order = hours.sort(1)
        chosen = chosen.gather(1, order)
        answer = _NUMBER_IDS[hours[:, 1:] - hours[:, :1] - 1]
    else:
        answer = LETTER_IDS[hours.argmin(1, keepdim=True)]
    named = SHAPE_IDS[cache.shapes[scenes].gather(1, chosen)]
    return Asked(kind, named, answer, one_hot(hours, HOURS).float(), hours, _marked(chosen))


def _marked(pieces: Tensor) -> Tensor:
    return torch.zeros(len(pieces), PIECES, dtype=torch.bool).scatter(1, pieces, True)


FOUND: Final[dict[Kind, int]] = {  # classes
    "order": HOURS,
    "count": HOURS,
    "where": len(COLOUR_NAMES),
    "sign": SIGN * len(SYLLABLES),
    "hours": HOURS,
}
STEPS: Final[dict[Kind, int]] = {"order": HOURS, "hours": HOURS, "count": 4, "where": len(DIRECTIONS)}
