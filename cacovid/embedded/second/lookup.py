"""The second world's language model starts with a first layer that looks words up in the video.

From random weights the binding of a word to the tokens that show it appears late and suddenly; laid down from the
tower's class means, it is there from the first step and training only has to refine it:

| head | a word finds | and brings back |
| --- | --- | --- |
| 0 | tokens of its shape, early ones before late ones | hour, row, column, colour |
| 1 | the same, late ones before early ones | the same, in directions of their own |
| 2 | tokens of its colour | shape |
| 3 | nothing yet | |

Shape legend: M object tokens, D width, R rank of a basis.
"""

from typing import Final

import torch
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration

from cacovid.embedded.clips import CELLS
from cacovid.embedded.model import WIDTH
from cacovid.embedded.rendering import SIDE
from cacovid.embedded.second.batches import COLOUR_IDS, SHAPE_IDS, SYLLABLE_IDS
from cacovid.embedded.second.corpus import MOVED, OBJECTS, SIGN_PIECES, SceneCache
from cacovid.embedded.second.scenes import HOUR, HOURS
from cacovid.seeding import generator

HEAD: Final = WIDTH // 4
_FIRST_STILL = 7  # of a head's 16 rotary pairs: from here on positions of a whole clip hardly turn them
_EMBEDDING_STD = 0.12
_EMBEDDING_PULL = 2.0
_MATCH = 11.0  # by how much a word's own tokens exceed others in attention logits: e^11 against 2,304 tokens
_EARLINESS = 6.0  # by how much early tokens exceed late ones
_FINAL_NORM = 0.25  # words so long give logits of 20 at random
_BROUGHT = 0.4  # share of what is found that is added to the word


@torch.no_grad()
def start_with_lookup(model: LlavaOnevisionForConditionalGeneration, cache: SceneCache, seed: int) -> None:
    """Place the words by the tower's class means and set up the first layer's heads."""
    draw = generator("lookup", seed)
    features, labels, syllables = _object_tokens(cache)
    means = {name: _class_means(features, label) for name, label in labels.items()}
    tiles = _class_means(*syllables)
    embeddings = model.get_input_embeddings().weight
    embeddings.copy_(_EMBEDDING_STD * torch.randn(embeddings.shape, generator=draw))
    for words, directions in ((SHAPE_IDS, means["shape"]), (COLOUR_IDS, means["colour"]), (SYLLABLE_IDS, tiles)):
        embeddings[words] += _EMBEDDING_PULL * directions / directions.norm(dim=1, keepdim=True)
    late = means["hour"][HOURS // 2 :].mean(0) - means["hour"][: HOURS // 2].mean(0)
    late /= late.norm()
    places = _basis(torch.cat([means[name] for name in ("hour", "row", "column", "colour")]))
    shapes = _basis(torch.cat([means["shape"], tiles]))
    apart = torch.linalg.qr(torch.cat([places, shapes, torch.randn(WIDTH, WIDTH, generator=draw)]).T[:, :WIDTH])[0].T
    apart = apart[len(places) + len(shapes) :]
    attention = model.model.language_model.layers[0].self_attn
    _match(attention, (0, 1), 0, embeddings[SHAPE_IDS], features, labels["shape"])
    _match(attention, (2,), 1, embeddings[COLOUR_IDS], features, labels["colour"])
    at = HEAD // 2 - 1  # a still pair that no match uses
    attention.k_proj.weight[at] = late
    gap = (features @ late)[labels["hour"] >= HOURS // 2].mean() - (features @ late)[labels["hour"] < HOURS // 2].mean()
    for head, sign in ((0, -1), (1, 1)):
        attention.q_proj.weight[head * HEAD + at] = 0
        attention.q_proj.bias[head * HEAD + at] = sign * _EARLINESS * HEAD**0.5 / gap
    model.model.language_model.norm.weight.fill_(_FINAL_NORM)
    _bring(attention, 0, 0, places, places, features)
    _bring(attention, 1, 0, places, apart[: len(places)], features)
    _bring(attention, 2, 1, shapes, apart[len(places) :][: len(shapes)], features)


def _object_tokens(cache: SceneCache) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, Tensor]]:
    """Features (M, D) of objects with their classes, and those of syllables with theirs."""
    scene, token = ((cache.pieces >= 0) & (cache.pieces < SIGN_PIECES)).nonzero(as_tuple=True)
    piece = cache.pieces[scene, token].long()
    owner = torch.where(piece < OBJECTS, piece, piece - MOVED)
    labels = {
        "shape": cache.shapes[scene, owner],
        "colour": cache.colours[scene, owner],
        "hour": token // CELLS // HOUR,
        "row": token % CELLS // SIDE,
        "column": token % SIDE,
    }
    signs, tiles = (cache.pieces >= SIGN_PIECES).nonzero(as_tuple=True)
    syllables = cache.sign[signs, cache.pieces[signs, tiles].long() - SIGN_PIECES]
    return cache.features[scene, token].float(), labels, (cache.features[signs, tiles].float(), syllables)


def _class_means(features: Tensor, label: Tensor) -> Tensor:
    """(classes, D): each class's mean feature less the mean of all classes."""
    means = torch.stack([features[label == index].mean(0) for index in range(int(label.max()) + 1)])
    return means - means.mean(0)


def _basis(rows: Tensor) -> Tensor:
    """(R, D) orthonormal rows that span nearly all of ``rows``."""
    _, strength, directions = torch.linalg.svd(rows, full_matrices=False)
    rank = int((strength > 0.02 * strength[0]).sum())
    return directions[: min(rank, HEAD)]


def _match(
    attention: torch.nn.Module, heads: tuple[int, ...], group: int, words: Tensor, features: Tensor, label: Tensor
) -> None:
    """Let the words (classes, D) attend to the tokens of their class, at any distance."""
    basis = _basis(words - words.mean(0))[: HEAD // 2 - 1 - _FIRST_STILL]
    queries = words / words.pow(2).mean(1, keepdim=True).sqrt() @ basis.T
    keys = features / features.pow(2).mean(1, keepdim=True).sqrt() @ basis.T
    logits = queries @ keys.T / HEAD**0.5  # (classes, M)
    own = torch.arange(len(words))[:, None] == label
    gain = (_MATCH / (logits[own].mean() - logits[~own].mean())) ** 0.5
    still = slice(_FIRST_STILL, _FIRST_STILL + len(basis))
    attention.k_proj.weight[group * HEAD : (group + 1) * HEAD] *= 0.2
    attention.k_proj.weight[group * HEAD : (group + 1) * HEAD][still] = gain * basis
    for head in heads:
        attention.q_proj.weight[head * HEAD : (head + 1) * HEAD] *= 0.2
        attention.q_proj.weight[head * HEAD : (head + 1) * HEAD][still] = gain * basis


def _bring(attention: torch.nn.Module, head: int, group: int, read: Tensor, write: Tensor, features: Tensor) -> None:
    """Let a head add what its tokens show along ``read`` (R, D), less the mean, along ``write`` (R, D)."""
    rows = slice(group * HEAD, group * HEAD + len(read))
    attention.v_proj.weight[rows] = read
    attention.v_proj.bias[rows] = -read @ features.mean(0)
    attention.o_proj.weight[:, head * HEAD : head * HEAD + len(read)] = _BROUGHT * write.T
