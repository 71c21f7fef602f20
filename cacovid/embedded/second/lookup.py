"""The second world's language model starts with a first layer that looks words up in the video.

From random weights the binding of a word to the tokens that show it appears late and suddenly; laid down from what is
linear in the tower's features, it is there from the first step and training only has to refine it:

| head | a word finds | and brings back |
| --- | --- | --- |
| 0 | tokens of its shape, early ones before late ones | hour, row, column, colour |
| 1 | the same, late ones before early ones | hour, row, column, in directions of their own |
| 2 to 9 | tokens of its colour, those of one hour before others | whether it is that hour |
| 10 to 12 | "sign": the sign's first, second, third syllable | which one, in directions of their own |

So the hours of a colour stand side by side, however many objects have it. Head 13 finds nothing yet.
Shape legend: M video tokens, D width.
"""

from dataclasses import dataclass
from math import log
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot, softplus
from transformers import LlavaOnevisionForConditionalGeneration

from cacovid.embedded.glyphs import COLOUR_NAMES, SHAPES, SYLLABLES
from cacovid.embedded.model import HEAD, WIDTH
from cacovid.embedded.rendering import CELLS, SIDE
from cacovid.embedded.second.batches import COLOUR_IDS, SHAPE_IDS, word_ids
from cacovid.embedded.second.corpus import SIGN_PIECES, SceneCache
from cacovid.embedded.second.scenes import HOUR, HOURS, MOVED, OBJECTS, SIGN
from cacovid.seeding import generator

SIGN_IDS: Final = word_ids(("sign",))
_STILL = 7  # of a head's 16 rotary pairs: from here on positions of a whole clip hardly turn them
_EMBEDDING_STD = 0.12
_MARGIN = 6.0  # by how much a class's own tokens exceed all others of a scene together, in attention logits
_EVEN = 1.0  # weight of the variance of a class's own logits
_DETECTOR_STEPS, _DETECTOR_LR = 400, 0.05
_EARLINESS = 6.0  # by how much early tokens exceed late ones
_IN_HOUR = 6.0  # by how much those of the hour exceed others
_FINAL_NORM = 0.25  # words so long give logits of 20 at random
_BROUGHT = 1.0  # length of what is found, of a word's 1.4
_SCENES = 200
_BACKGROUND = 100  # tokens a scene that show no object
_RIDGE = 1e-3
_BRINGS: Final = {  # by head
    0: ("hour", "row", "column", "colour"),
    1: ("hour", "row", "column"),
    10: ("syllable",),
    11: ("syllable",),
    12: ("syllable",),
}
_FIRST_HOUR, _FIRST_PLACE = 2, 10  # heads
_CLASSES: Final = {
    "shape": len(SHAPES),
    "colour": len(COLOUR_NAMES),
    "syllable": len(SYLLABLES),
    "place": SIGN,
    "hour": HOURS,
    "light": HOURS,
    "half": 2,
    "row": SIDE,
    "column": SIDE,
}


@dataclass(frozen=True)
class _Tokens:
    """A sample of video tokens: all of objects and syllables, some of the rest."""

    features: Tensor  # (M, D), normed as the first layer norms them
    labels: dict[str, Tensor]  # (M,) each, -1 where it does not apply
    weights: Tensor  # (M,) logarithm of how many tokens of an average scene each stands for

    def readers(self, name: str) -> tuple[Tensor, Tensor]:
        """Rows (classes, D) and offsets that give 1 for a class and 0 for the others, by least squares.

        What is read from a mean of tokens is then the share of each class among them.
        """
        label = self.labels[name]
        known = self.features[label >= 0]
        target = one_hot(label[label >= 0], _CLASSES[name]).float()
        middle, share = known.mean(0), target.mean(0)
        centred = known - middle
        ridge = _RIDGE * len(known) * torch.eye(WIDTH)
        rows = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ (target - share)).T
        return rows, share - rows @ middle

    def detectors(self, name: str) -> Tensor:
        """Rows (classes, D): attention logits by which a class's tokens exceed all others of their scene together.

        Own logits are drawn to their mean, so that each of several objects gets its share.
        """
        own = one_hot(self.labels[name] + 1, _CLASSES[name] + 1)[:, 1:].bool()
        share = own / own.sum(0).clamp(min=1)
        with torch.enable_grad():
            rows = torch.zeros(own.shape[1], WIDTH, requires_grad=True)
            optimizer = torch.optim.Adam([rows], lr=_DETECTOR_LR)
            for _ in range(_DETECTOR_STEPS):
                logits = self.features @ rows.T
                mean = (share * logits).sum(0)
                spread = (share * (logits - mean).square()).sum(0)
                others = (logits + self.weights[:, None]).masked_fill(own, -torch.inf).logsumexp(0)
                loss = (softplus(others - mean + _MARGIN) + _EVEN * spread).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return rows.detach()


@torch.no_grad()
def start_with_lookup(model: LlavaOnevisionForConditionalGeneration, cache: SceneCache, seed: int) -> None:
    """Draw the words and set up the first layer's heads."""
    draw = generator("lookup", seed)
    tokens = _sample(cache, draw)
    late, late_offset = tokens.readers("half")
    keys = {name: tokens.detectors(name) for name in ("shape", "colour", "place")}
    words = model.get_input_embeddings().weight
    words.copy_(_EMBEDDING_STD * torch.randn(words.shape, generator=draw))
    seen = torch.linalg.qr(torch.cat([*keys.values(), late[1:]]).T)[0]
    for text in (words, model.model.image_newline):  # has nothing of what is looked for: as a key an average token
        text -= text @ seen @ seen.T
    attention = model.model.language_model.layers[0].self_attn
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight *= 0.1
    read = torch.linalg.pinv(normalize(words[torch.cat([SHAPE_IDS, COLOUR_IDS, SIGN_IDS])], dim=1).T) / WIDTH**0.5
    shapes, colours, sign = read.split([len(SHAPES), len(COLOUR_NAMES), 1])
    for head in (0, 1):
        _match(attention, head, shapes, keys["shape"])
    for head in range(_FIRST_HOUR, _FIRST_HOUR + HOURS):
        _match(attention, head, colours, keys["colour"])
    for place in range(SIGN):
        _match(attention, _FIRST_PLACE + place, one_hot(torch.tensor([place]), SIGN).T * sign, keys["place"])
    early_at = HEAD - 1
    attention.k_proj.weight[early_at] = late[1]
    attention.k_proj.bias[early_at] = late_offset[1] - 0.5
    for head, side in ((0, -1), (1, 1)):
        attention.q_proj.weight[head * HEAD + early_at] = 0
        attention.q_proj.bias[head * HEAD + early_at] = side * _EARLINESS * HEAD**0.5
    light, light_offset = tokens.readers("light")
    hour, hour_offset = tokens.readers("hour")
    apart = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draw))[0]
    for head, names in _BRINGS.items():
        read, offset = (torch.cat(part) for part in zip(*(tokens.readers(name) for name in names), strict=True))
        write, apart = apart[: len(read)], apart[len(read) :]
        rows = slice(head // 2 * HEAD, head // 2 * HEAD + len(read))
        attention.v_proj.weight[rows], attention.v_proj.bias[rows] = read, offset
        attention.o_proj.weight[:, head * HEAD : head * HEAD + len(read)] = _BROUGHT * write.T
    for at, head in enumerate(range(_FIRST_HOUR, _FIRST_HOUR + HOURS)):
        dimension, value = HEAD - 2 + at % 2, head // 2 * HEAD + at % 2
        key = head // 2 * HEAD + dimension
        attention.k_proj.weight[key], attention.k_proj.bias[key] = light[at], light_offset[at]
        attention.q_proj.weight[head * HEAD + dimension] = 0
        attention.q_proj.bias[head * HEAD + dimension] = _IN_HOUR * HEAD**0.5
        attention.v_proj.weight[value], attention.v_proj.bias[value] = hour[at], hour_offset[at]
        attention.o_proj.weight[:, head * HEAD : head * HEAD + 2] = 0
        attention.o_proj.weight[:, head * HEAD + at % 2] = _BROUGHT * apart[at]
    model.model.language_model.norm.weight.fill_(_FINAL_NORM)


def _sample(cache: SceneCache, draw: torch.Generator) -> _Tokens:
    shown = cache.pieces[:_SCENES] >= 0
    rest = (torch.rand(shown.shape, generator=draw) < _BACKGROUND / shown.shape[1]) & ~shown
    scene, token = (shown | rest).nonzero(as_tuple=True)
    piece = cache.pieces[scene, token].long()
    is_object = (piece >= 0) & (piece < SIGN_PIECES)
    owner = torch.where(piece < OBJECTS, piece, piece - MOVED).clamp(0, OBJECTS - 1)
    hour = token // CELLS // HOUR
    labels = {
        "shape": torch.where(is_object, cache.shapes[scene, owner], -1),
        "colour": torch.where(is_object, cache.colours[scene, owner], -1),
        "syllable": torch.where(piece >= SIGN_PIECES, cache.sign[scene, (piece - SIGN_PIECES).clamp(min=0)], -1),
        "place": (piece - SIGN_PIECES).clamp(min=-1),
        "hour": torch.where(is_object, hour, -1),
        "light": hour,
        "half": torch.where(is_object, hour * 2 // HOURS, -1),
        "row": torch.where(is_object, token % CELLS // SIDE, -1),
        "column": torch.where(is_object, token % SIDE, -1),
    }
    features = normalize(cache.features[scene, token].float(), dim=1) * WIDTH**0.5
    weights = torch.where(piece >= 0, 0.0, log(shown.shape[1] / _BACKGROUND)) - log(len(shown))
    return _Tokens(features, labels, weights)


def _match(
    attention: Any,  # noqa: ANN401 - a Qwen2Attention, whose module has no types
    head: int,
    queries: Tensor,
    keys: Tensor,
) -> None:
    """Let the words of ``queries`` (classes, D) attend to the tokens of ``keys`` (classes, D), at any distance."""
    still = slice(_STILL, _STILL + len(keys))
    attention.k_proj.weight[head // 2 * HEAD :][still] = keys
    attention.q_proj.weight[head * HEAD :][still] = HEAD**0.5 * queries
