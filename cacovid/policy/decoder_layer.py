"""A language model's decoder layer, run by itself with full or causal attention over the whole prompt.

Shape legend: B batch, L prompt columns, P position rows, D width.
"""

import copy
import importlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from accelerate.hooks import remove_hook_from_module
from pydantic import Field
from torch import Tensor, nn

import cacovid.models  # noqa: F401 - before transformers imports torchvision
from cacovid.config import Section
from cacovid.errors import UserError


class _Family(NamedTuple):
    """Where transformers keeps a text model's layer and rotary embedding."""

    module: str
    prefix: str  # class names are prefix + DecoderLayer, prefix + RotaryEmbedding
    multimodal_positions: bool  # rotary embedding takes (3, B, L) instead of (B, L)


# Only classes listed here are ever built from a file: policy.json names a type, never a class.
_FAMILIES = {
    "llama": _Family("transformers.models.llama.modeling_llama", "Llama", False),
    "mistral": _Family("transformers.models.mistral.modeling_mistral", "Mistral", False),
    "qwen2": _Family("transformers.models.qwen2.modeling_qwen2", "Qwen2", False),
    "qwen3": _Family("transformers.models.qwen3.modeling_qwen3", "Qwen3", False),
    "qwen2_5_vl_text": _Family("transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "Qwen2_5_VL", True),
    "qwen3_vl_text": _Family("transformers.models.qwen3_vl.modeling_qwen3_vl", "Qwen3VLText", True),
}


class LayerSpec(Section):
    """Enough to rebuild a decoder layer without the language model's weights."""

    model_type: str = Field(description="the text config's model_type, one of the known ones")
    text_config: dict[str, Any] = Field(description="the text config as transformers writes it")


class FirstLayer(nn.Module):
    """One decoder layer with its rotary embedding.

    Attributes:
        causal: Whether a column attends to those before it alone, else to every real column.
    """

    def __init__(self, layer: nn.Module, spec: LayerSpec) -> None:
        super().__init__()
        self.layer = layer
        self.spec = spec
        self.rotary: nn.Module = _transformers_class(spec.model_type, "RotaryEmbedding")(config=_text_config(spec))
        self._frequencies = {name: buffer.clone() for name, buffer in self.rotary.named_buffers()}
        self._multimodal = _family(spec.model_type).multimodal_positions
        # The layer's own config decides the kernel.
        layer.self_attn.config._attn_implementation = "sdpa"  # type: ignore[union-attr]
        self.causal = False

    @property
    def causal(self) -> bool:
        """See above."""
        return bool(self.layer.self_attn.is_causal)  # type: ignore[union-attr]

    @causal.setter
    def causal(self, value: bool) -> None:
        self.layer.self_attn.is_causal = value  # type: ignore[union-attr]  # decides where there is no mask

    @classmethod
    def from_language_model(cls, text_model: nn.Module) -> "FirstLayer":
        """A float32 copy of ``text_model.layers[0]``, to be run as ``text_model.config`` says.

        Raises UserError when the text model's type is none of the known ones.
        """
        config: Any = text_model.config
        _family(config.model_type)
        fields: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
        fields.pop("_name_or_path", None)  # a saved policy tells nobody's folders
        spec = LayerSpec(model_type=config.model_type, text_config=fields)
        layers: Any = text_model.layers
        copied = remove_hook_from_module(copy.deepcopy(layers[0]), recurse=True)  # of a model spread over GPUs
        layer: nn.Module = copied.float().requires_grad_(True)
        return cls(layer, spec).to(next(layer.parameters()).device)

    @classmethod
    def from_spec(cls, spec: LayerSpec) -> "FirstLayer":
        """A layer of the same shape with random weights (drawn from torch's global generator)."""
        layer = _transformers_class(spec.model_type, "DecoderLayer")(_text_config(spec), layer_idx=0)
        return cls(layer.float(), spec)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FirstLayer":
        """Move or cast, but keep the rotary frequencies in float32: half precision ruins far positions."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, buffer in list(self.rotary.named_buffers()):
            setattr(self.rotary, name, self._frequencies[name].to(buffer.device))
        return self

    def forward(self, hidden: Tensor, position_ids: Tensor, mask: Tensor) -> Tensor:
        """(B, L, D) hidden states after the layer.

        Args:
            hidden: (B, L, D) embeddings of the whole prompt.
            position_ids: (P, B, L) int64, P = 1, or 3 for M-RoPE.
            mask: (B, L) bool, False for padding, which nothing attends to.
        """
        positions = position_ids if self._multimodal else position_ids[0]
        rotation = self.rotary(hidden, positions)
        # No mask at all lets the attention kernel take its fast path.
        visible = None if bool(mask.all()) else mask[:, None, None, :]
        if visible is not None and self.causal:
            visible = visible & torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device).tril()
        output: Tensor = self.layer(hidden, attention_mask=visible, position_embeddings=rotation)
        return output


def _text_config(spec: LayerSpec) -> Any:  # noqa: ANN401 - transformers has no types
    """The text config of ``spec``."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[spec.model_type].from_dict(dict(spec.text_config))


def _transformers_class(model_type: str, suffix: str) -> Any:  # noqa: ANN401 - transformers has no types
    """The family's DecoderLayer or RotaryEmbedding class."""
    family = _family(model_type)
    return getattr(importlib.import_module(family.module), family.prefix + suffix)


def _family(model_type: str) -> _Family:
    if model_type not in _FAMILIES:
        raise UserError(
            f"policy 'paper' knows no decoder layer of type {model_type!r} (known: {', '.join(sorted(_FAMILIES))}): "
            "use policy.kind='late' or see docs/new-backbone.md"
        )
    return _FAMILIES[model_type]
