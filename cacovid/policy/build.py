"""Fresh policies: from a configuration alone, or for a loaded Video-LLM."""

import copy

import torch

from cacovid.config import PolicyConfig, TrainConfig
from cacovid.models.adapter import VideoLLM
from cacovid.policy.base import CompressionPolicy
from cacovid.policy.decoder_layer import FirstLayer
from cacovid.policy.files import PolicyMetadata
from cacovid.seeding import derive_seed


def policy_for(video_llm: VideoLLM, config: TrainConfig) -> CompressionPolicy:
    """The untrained policy of ``config``: the same on every process that loads the same model."""
    decoder = video_llm.model.get_decoder()
    layer = FirstLayer.from_language_model(decoder) if config.policy.kind == "paper" else None
    policy = build_policy(config.policy, video_llm.hidden_size, layer, seed=config.run.seed)
    policy.metadata = PolicyMetadata(
        model_fingerprint=video_llm.fingerprint,
        model_type=video_llm.kind,
        model_path=config.model.path,
        selection=config.selection,
        num_frames=config.model.num_frames,
        positions=config.model.positions,
        trained_length=config.model.trained_length,
        instruction=config.data.instruction,
    )
    return policy


def build_policy(
    config: PolicyConfig, hidden_size: int, llm_layer: FirstLayer | None = None, *, seed: int
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
        return CompressionPolicy.networks[config.kind](config, hidden_size, layer)
