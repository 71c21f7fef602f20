"""Random draws that depend on the request alone: not on the batch, the engine or a second try.

Shape legend: V vocabulary.
"""

import torch
from torch import Tensor

from cacovid.seeding import generator
from serving.engine.records import Decoding


class Draws:
    """The draws of one answer, from its own temperature, nucleus and seed.

    Adding Gumbel noise to logits / temperature makes the argmax a draw from their softmax. The noise of a step
    is a function of seed and step: an engine may ask for a step twice, or begin at a later one.
    """

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self._generator = generator("serving", decoding.seed)
        self._drawn = 0  # steps whose noise the generator has given
        self._noise = torch.zeros(0)  # of the last of them

    def scores(self, logits: Tensor, step: int) -> Tensor:
        """(V,) scores whose argmax is the token of ``step``, which counts from 0, for ``logits`` (V,)."""
        if self._decoding.temperature == 0:
            return logits
        wanted = _nucleus(logits / self._decoding.temperature, self._decoding.top_p)
        return wanted + self._gumbel(wanted.shape, step).to(wanted)

    def _gumbel(self, shape: torch.Size, step: int) -> Tensor:
        assert step >= self._drawn - 1, f"step {step} after {self._drawn} were drawn"
        while self._drawn <= step:
            uniform = torch.rand(shape, generator=self._generator, dtype=torch.float64).clamp_min(1e-300)
            self._noise = -(-uniform.log()).log()
            self._drawn += 1
        return self._noise


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """(V,) logits with all but the likeliest tokens that hold ``top_p`` of the mass at -inf."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(descending=True)
    before = ordered.softmax(0).cumsum(0) - ordered.softmax(0)
    return logits.index_fill(0, order[before >= top_p], float("-inf"))
