"""Tiny random text models of each type that policy 'paper' can take its layer from."""

from typing import Any

import torch
import transformers as hf

import cacovid.models  # noqa: F401 - before a name of transformers imports torchvision
from cacovid.policy.decoder_layer import FirstLayer

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "head_dim": 8,
}
MULTIMODAL = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}


def tiny_text_model(model_type: str) -> torch.nn.Module:
    """A random text model of ``model_type`` with two layers of width 32."""
    sizes = dict(SIZES)
    if model_type.endswith("_text"):
        sizes["rope_parameters"] = MULTIMODAL
    config = hf.CONFIG_MAPPING[model_type](**sizes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return hf.AutoModel.from_config(config).eval()


def tiny_layer(model_type: str = "qwen2") -> FirstLayer:
    """Its first decoder layer."""
    return FirstLayer.from_language_model(tiny_text_model(model_type))
