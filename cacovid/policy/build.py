"""Build a fresh policy from its configuration."""

import copy

import torch

from cacovid.config import PolicyConfig
from cacovid.errors import UserError
from cacovid.policy.base import CompressionPolicy
from cacovid.policy.decoder_layer import NonCausalLayer
from cacovid.policy.late import LatePolicy
from cacovid.policy.paper import PaperPolicy
from cacovid.seeding import derive_seed


def build_policy(
    config: PolicyConfig, hidden_size: int, llm_layer: NonCausalLayer | None = None, *, seed: int
) -> CompressionPolicy:
    """A float32 policy whose weights depend on ``seed`` (and the LLM's layer) alone.

    Args:
        config: which network and its sizes.
        hidden_size: width D of the language model's embeddings.
        llm_layer: the LLM's first decoder layer, copied; needed by kind 'paper' only.
        seed: the run's seed; torch's global generator is left as it was.
    """
    layer = copy.deepcopy(llm_layer) if llm_layer is not None and config.kind == "paper" else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "policy"))
        return empty_policy(config, hidden_size, layer)


def empty_policy(config: PolicyConfig, hidden_size: int, layer: NonCausalLayer | None) -> CompressionPolicy:
    """The network of ``config`` with weights from torch's global generator; ``layer`` is taken, not copied."""
    if config.kind == "late":
        return LatePolicy(config, hidden_size)
    if layer is None:
        raise UserError("policy.kind='paper' needs the language model's first decoder layer: load the Video-LLM first")
    return PaperPolicy(config, hidden_size, layer)
