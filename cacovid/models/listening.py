"""Queries and keys of chosen attention modules, by transformers' own attention interface.

While somebody listens, the model's attention runs through a function that hands the queries and keys of the chosen
modules on and then does what ``sdpa`` does. No weights are materialised, no module is patched.

Shape legend: B batch, H query heads, G key heads, Q queries, K keys, d head width.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "cacovid-listening"
Listener = Callable[[Tensor, Tensor, float], None]  # queries (B, H, Q, d), keys (B, G, K, d), scale of the products

_listeners: dict[nn.Module, Listener] = {}


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,  # noqa: ANN401 - the interface's own
) -> tuple[Tensor, None]:
    listener = _listeners.get(module)
    if listener is not None:
        scale = kwargs.get("scaling")
        listener(query, key, query.shape[-1] ** -0.5 if scale is None else float(scale))
    attended: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return attended


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def listening(model: Any, listeners: Mapping[nn.Module, Listener]) -> Iterator[None]:  # noqa: ANN401
    """Hand each listener what its attention module of ``model`` (a PreTrainedModel) reads, in this block.

    Args:
        model: The part that holds the modules: its attention runs as ``sdpa`` in the block, whatever was configured.
        listeners: By attention module.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    _listeners.update(listeners)
    try:
        yield
    finally:
        for module in listeners:
            del _listeners[module]
        model.set_attn_implementation(before)


def attention_weights(query: Tensor, key: Tensor, scale: float, unseen: Tensor | None = None) -> Tensor:
    """(H, Q, K) float32 softmax of ``query`` (H, Q, d) and ``key`` (G, K, d) over the keys but ``unseen`` (Q, K)."""
    keys = key.repeat_interleave(query.shape[0] // key.shape[0], dim=0)
    scores = (query @ keys.transpose(1, 2)).float() * scale
    return torch.softmax(scores if unseen is None else scores.masked_fill(unseen, -torch.inf), dim=-1)
