"""Drawing the next token of an answer.

Shape legend: V vocabulary.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cacovid.seeding import generator
from serving.engine.records import Decoding, Likely, TokenLogprob


class Sampler:
    """Draws one answer's tokens with its own temperature, nucleus, penalties and generator.

    Adding Gumbel noise to logits / temperature makes the argmax a draw from their softmax, so that
    taking the largest draws; answers do not depend on which others share their batch.
    """

    def __init__(self, decoding: Decoding) -> None:
        self._decoding = decoding
        self._generator = generator("serving", decoding.seed)
        self.plain = (decoding.temperature, decoding.presence_penalty, decoding.frequency_penalty) == (0, 0, 0)

    def __call__(self, logits: Tensor, answer: Sequence[int] = ()) -> Tensor:
        """(V,) scores whose argmax is the token drawn behind the tokens of ``answer``."""
        if self.plain:
            return logits
        decoding = self._decoding
        logits = _penalised(logits, answer, decoding.presence_penalty, decoding.frequency_penalty)
        if decoding.temperature == 0:
            return logits
        logits = _nucleus(logits / decoding.temperature, decoding.top_p)
        uniform = torch.rand(logits.shape, generator=self._generator, dtype=torch.float64).clamp_min(1e-300)
        return logits - (-uniform.log()).log().to(logits)


def token_logprob(logits: Tensor, token: int, alternatives: int, tokenizer: Any) -> TokenLogprob:  # noqa: ANN401
    """What the model itself thinks of ``token`` by its ``logits`` (V,) and of the likeliest ones."""
    logprobs = logits.log_softmax(0)
    best = logprobs.topk(min(alternatives, logprobs.shape[0]))
    top = [
        Likely(str(tokenizer.decode([other])), value)
        for value, other in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
    return TokenLogprob(str(tokenizer.decode([token])), float(logprobs[token]), tuple(top))


def _penalised(logits: Tensor, answer: Sequence[int], presence: float, frequency: float) -> Tensor:
    """(V,) logits less OpenAI's penalties of the tokens that the answer holds."""
    if not answer or presence == frequency == 0:
        return logits
    counts = Counter(answer)
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
