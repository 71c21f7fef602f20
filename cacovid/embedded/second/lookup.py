"""The second world's language model starts with a first layer that looks words up in the video.

From random weights the binding of a word to the tokens that show it appears late and suddenly; laid down from the
tower's class means, it is there from the first step and training only has to refine it:

| head | a word finds | and brings back |
| --- | --- | --- |
| 0 | tokens of its shape, early ones before late ones | hour, row, column, colour |
| 1 | the same, late ones before early ones | the same, in directions of their own |
| 2 | tokens of its colour | shape, syllable |
| 3 | nothing yet | |

Shape legend: M video tokens, D width.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from cacovid.embedded.model import WIDTH
from cacovid.embedded.rendering import CELLS, SIDE
from cacovid.embedded.second.batches import COLOUR_IDS, SHAPE_IDS
from cacovid.embedded.second.corpus import SIGN_PIECES, SceneCache
from cacovid.embedded.second.scenes import HOUR, HOURS, MOVED, OBJECTS
from cacovid.seeding import generator

HEAD: Final = WIDTH // 4
_STILL = 7  # of a head's 16 rotary pairs: from here on positions of a whole clip hardly turn them
_EMBEDDING_STD = 0.12
_MATCH = 14.0  # by how much a word's own tokens exceed others in attention logits: e^14 against 2,304 tokens
_EARLINESS = 6.0  # by how much early tokens exceed late ones
_FINAL_NORM = 0.25  # words so long give logits of 20 at random
_BROUGHT = 0.3  # share of what is found that is added to the word
_BACKGROUND = 40  # tokens a scene that show no object
_RIDGE = 1e-3


@dataclass(frozen=True)
class _Tokens:
    """A sample of video tokens: all of objects and syllables, some of the rest."""

    features: Tensor  # (M, D)
    labels: dict[str, Tensor]  # (M,) each, -1 where it does not apply

    def means(self, name: str) -> Tensor:
        """(classes, D): each class's mean feature less the mean of all classes."""
        label = self.labels[name]
        means = torch.stack([self.features[label == index].mean(0) for index in range(int(label.max()) + 1)])
        return means - means.mean(0)

    def discriminants(self, name: str) -> Tensor:
        """(classes, D): Fisher's, blind to what varies within a class; classes' scores have unit spread."""
        label = self.labels[name]
        within = torch.cat(
            [
                self.features[label == index] - self.features[label == index].mean(0)
                for index in range(-1, int(label.max()) + 1)
                if (label == index).any()
            ]
        )
        covariance = within.T @ within / len(within)
        ridge = _RIDGE * covariance.diagonal().mean() * torch.eye(WIDTH)
        means = self.means(name)
        rows = torch.linalg.solve(covariance + ridge, means.T).T
        scaled: Tensor = rows / (means @ rows.T).std()
        return scaled


@torch.no_grad()
def start_with_lookup(model: LlavaOnevisionForConditionalGeneration, cache: SceneCache, seed: int) -> None:
    """Draw the words and set up the first layer's heads."""
    draw = generator("lookup", seed)
    tokens = _sample(cache, draw)
    late = tokens.discriminants("half")[1]
    late = late / (tokens.means("half")[1] - tokens.means("half")[0]).dot(late)
    keys = {"shape": tokens.discriminants("shape"), "colour": tokens.discriminants("colour")}
    words = model.get_input_embeddings().weight
    words.copy_(_EMBEDDING_STD * torch.randn(words.shape, generator=draw))
    seen = torch.linalg.qr(torch.cat([*keys.values(), late[None]]).T)[0]
    for text in (
        words,
        model.model.image_newline,
    ):  # a word has nothing of what is looked for: as a key it is an average token
        text -= text @ seen @ seen.T
    normed = words / words.pow(2).mean(1, keepdim=True).sqrt()
    attention = model.model.language_model.layers[0].self_attn
    for projection in (attention.q_proj, attention.k_proj):
        projection.weight *= 0.1
    for group, heads, name, ids in ((0, (0, 1), "shape", SHAPE_IDS), (1, (2,), "colour", COLOUR_IDS)):
        _match(attention, group, heads, normed[ids], keys[name], tokens, tokens.labels[name])
    early_at = HEAD - 1
    attention.k_proj.weight[early_at] = late
    attention.k_proj.bias[early_at] = -late @ tokens.features[tokens.labels["half"] >= 0].mean(0)
    for head, sign in ((0, -1), (1, 1)):
        attention.q_proj.weight[head * HEAD + early_at] = 0
        attention.q_proj.bias[head * HEAD + early_at] = sign * _EARLINESS * HEAD**0.5
    places = torch.cat([tokens.discriminants(name) for name in ("hour", "row", "column", "colour")])
    shapes = torch.cat([tokens.discriminants(name) for name in ("shape", "syllable")])
    apart = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=draw))[0]
    for head, group, read in ((0, 0, places), (1, 0, places), (2, 1, shapes)):
        write, apart = apart[: len(read)], apart[len(read) :]
        rows = slice(group * HEAD, group * HEAD + len(read))
        attention.v_proj.weight[rows] = read
        attention.v_proj.bias[rows] = -read @ tokens.features.mean(0)
        attention.o_proj.weight[:, head * HEAD : head * HEAD + len(read)] = _BROUGHT * write.T
    model.model.language_model.norm.weight.fill_(_FINAL_NORM)


def _sample(cache: SceneCache, draw: torch.Generator) -> _Tokens:
    shown = cache.pieces >= 0
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
        "hour": torch.where(is_object, hour, -1),
        "half": torch.where(is_object, hour * 2 // HOURS, -1),
        "row": torch.where(is_object, token % CELLS // SIDE, -1),
        "column": torch.where(is_object, token % SIDE, -1),
    }
    return _Tokens(cache.features[scene, token].float(), labels)


def _match(
    attention: Any,  # noqa: ANN401 - a Qwen2Attention, whose module has no types
    group: int,
    heads: tuple[int, ...],
    words: Tensor,
    rows: Tensor,
    tokens: _Tokens,
    label: Tensor,
) -> None:
    """Let normed words (classes, D) attend to the tokens of their class by its row (classes, D), at any distance."""
    own = torch.arange(len(rows))[:, None] == label
    scores = rows @ tokens.features.T
    gain = _MATCH / (scores[own].mean() - scores[~own].mean())
    still = slice(_STILL, _STILL + len(rows))
    attention.k_proj.weight[group * HEAD :][still] = gain * rows
    attention.k_proj.bias[group * HEAD :][still] = -gain * (rows @ tokens.features.mean(0))
    for head in heads:
        attention.q_proj.weight[head * HEAD :][still] = HEAD**0.5 * torch.linalg.pinv(words.T)
