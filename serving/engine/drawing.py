"""Random draws that depend on the request alone: not on the batch, the engine or a second try.

Shape legend: V vocabulary.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from cacovid.seeding import generator
from serving.engine.records import Decoding


class Draws:
    """The draws of one answer, from its own temperature, nucleus, penalties and seed.

    Adding Gumbel noise to logits / temperature makes the argmax a draw from their softmax. The noise of a step
    is a function of seed and step: an engine may ask for a step twice, or begin at a later one.
    """

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self._generator = generator("serving", decoding.seed)
        self._drawn = 0  # steps whose noise the generator has given
        self._noise = torch.zeros(0)  # of the last of them

    @property
    def greedy(self) -> bool:
        """Whether the model's own argmax is the draw."""
        decoding = self._decoding
        return decoding.temperature == decoding.presence_penalty == decoding.frequency_penalty == 0

    def scores(self, logits: Tensor, step: int, answer: Sequence[int] = ()) -> Tensor:
        """(V,) scores whose argmax is the token of ``step``, which counts from 0, for ``logits`` (V,).

        ``answer`` holds the tokens before it, for the penalties.
        """
        decoding = self._decoding
        if decoding.presence_penalty or decoding.frequency_penalty:
            logits = _penalised(logits, answer, decoding.presence_penalty, decoding.frequency_penalty)
        if decoding.temperature == 0:
            return logits
        wanted = _nucleus(logits / decoding.temperature, decoding.top_p)
        return wanted + self._gumbel(wanted.shape, step).to(wanted)

    def _gumbel(self, shape: torch.Size, step: int) -> Tensor:
        assert step >= self._drawn - 1, f"step {step} after {self._drawn} were drawn"
        while self._drawn <= step:
            uniform = torch.rand(shape, generator=self._generator, dtype=torch.float64).clamp_min(1e-300)
            self._noise = -(-uniform.log()).log()
            self._drawn += 1
        return self._noise


def _penalised(logits: Tensor, answer: Sequence[int], presence: float, frequency: float) -> Tensor:
    """(V,) logits less OpenAI's penalties of the tokens that the answer holds."""
    counts = Counter(answer)
    if not counts:
        return logits
    penalties = [presence + frequency * count for count in counts.values()]
    places = torch.tensor(list(counts), device=logits.device)
    return logits.index_add(0, places, -torch.tensor(penalties, device=logits.device, dtype=logits.dtype))


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """(V,) logits with all but the likeliest tokens that hold ``top_p`` of the mass at -inf."""
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(descending=True)
    before = ordered.softmax(0).cumsum(0) - ordered.softmax(0)
    return logits.index_fill(0, order[before >= top_p], float("-inf"))
