"""Tower levels that a language model adds after its first layers, on their way from the embedding to the layers.

vLLM embeds outside of what it may capture as a graph: the levels lie in buffers whose addresses stay.

Shape legend: C columns of a step, R injected rows, D width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.model_executor.models.utils import _merge_multimodal_embeddings
from vllm.sequence import IntermediateTensors


class Deepstack:
    """Buffers of ``levels`` levels for one step."""

    def __init__(self, levels: int, width: int, vllm_config: VllmConfig) -> None:
        self._width = width
        self._rows = [torch.zeros(vllm_config.scheduler_config.max_num_batched_tokens, width) for _ in range(levels)]
        self._used = 0  # columns that are not zero

    def hold(self, embeds: Tensor, items: Sequence[Tensor], is_multimodal: Tensor) -> list[Tensor]:
        """Keep the levels of ``items``, each (R, D + levels * D), at their columns; their own rows (R, D)."""
        for level, rows in enumerate(self._rows):
            first = (level + 1) * self._width
            parts = [item[:, first : first + self._width] for item in items]
            placed = _merge_multimodal_embeddings(torch.zeros_like(embeds), parts, is_multimodal)
            rows[: embeds.shape[0]].copy_(placed)
        self._used = embeds.shape[0]
        return [item[:, : self._width] for item in items]

    def held(self, columns: int) -> IntermediateTensors:
        """(C, D) of each level, by the names that vLLM's Qwen3-VL uses."""
        return IntermediateTensors({f"deepstack_input_embeds_{i}": rows[:columns] for i, rows in enumerate(self._rows)})

    def clear(self) -> None:
        """After the step."""
        for rows in self._rows:
            rows[: self._used].zero_()
        self._used = 0
