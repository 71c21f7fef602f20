"""A fresh compression policy for a loaded Video-LLM."""

from cacovid.config import TrainConfig
from cacovid.models.adapter import VideoLLM
from cacovid.policy.base import CompressionPolicy, PolicyMetadata
from cacovid.policy.build import build_policy
from cacovid.policy.decoder_layer import NonCausalLayer


def policy_for(video_llm: VideoLLM, config: TrainConfig) -> CompressionPolicy:
    """The untrained policy of ``config``: the same on every process that loads the same model."""
    decoder = video_llm.model.get_decoder()
    layer = NonCausalLayer.from_language_model(decoder) if config.policy.kind == "paper" else None
    policy = build_policy(config.policy, video_llm.hidden_size, layer, seed=config.run.seed)
    policy.metadata = PolicyMetadata(
        model_fingerprint=video_llm.fingerprint,
        model_type=video_llm.kind,
        model_path=config.model.path,
        selection=config.selection,
        num_frames=config.model.num_frames,
        positions=config.model.positions,
        instruction=config.data.instruction,
    )
    return policy
