"""Our seeded draws in vLLM's sampler: a logits processor of its V1 model runner.

vLLM is asked to be greedy; the noise that is added here makes its argmax a draw, the same one as in the
transformers engine. Rows of a prompt that is read in chunks are sampled in vain before its last chunk: their
step stays 0, so that they take nothing from the seed.

Shape legend: B answers of a step, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from serving.engine.drawing import Draws
from serving.engine.records import Decoding
from serving.vllm.names import DRAWS


class SeededDraws(LogitsProcessor):
    """Draws of those requests that carry a :class:`Decoding` as ``extra_args[DRAWS]``."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        self._rows: dict[int, tuple[Draws, list[int]]] = {}  # by place in the batch; with the answer so far

    def is_argmax_invariant(self) -> bool:
        """False: the argmax is the draw."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the rows as they come, move and go."""
        if batch_update is None:
            return
        for place in batch_update.removed:
            self._rows.pop(place, None)
        for place, params, _, answer in batch_update.added:
            self._rows.pop(place, None)
            wanted = _wanted(params)
            if wanted is not None:
                self._rows[place] = (Draws(Decoding(**wanted)), answer)
        for one, other, way in batch_update.moved:
            first, second = self._rows.pop(one, None), self._rows.pop(other, None)
            if first is not None:
                self._rows[other] = first
            if second is not None and way == MoveDirectionality.SWAP:
                self._rows[one] = second

    def apply(self, logits: Tensor) -> Tensor:
        """(B, V) logits whose argmax is the token drawn."""
        for place, (draws, answer) in self._rows.items():
            logits[place] = draws.scores(logits[place], len(answer), answer)
        return logits


def _wanted(params: SamplingParams) -> dict[str, Any] | None:
    return (params.extra_args or {}).get(DRAWS)
