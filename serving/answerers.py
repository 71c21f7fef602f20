"""Which answerer ``engine.kind`` stands for."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from serving.config import EngineConfig

if TYPE_CHECKING:
    from cacovid.models.adapter import VideoLLM
    from serving.engine.answerer import Answerer


def answerer_for(video_llm: "VideoLLM", config: EngineConfig, on_death: Callable[[], None]) -> "Answerer":
    """What draws the answers of one replica.

    Args:
        video_llm: what encodes; where vLLM answers it loses its language model's layers.
        config: ``kind``, limits and sizes.
        on_death: called when what answers is dead and requests must go elsewhere.

    Raises:
        UserError: vLLM cannot be started.
    """
    if config.kind == "transformers":
        from serving.engine.generation import JoiningBatches

        return JoiningBatches(video_llm, config)
    if config.kind == "upstream":
        from serving.upstream.answerer import UpstreamAnswers

        return UpstreamAnswers(video_llm, config)
    from serving.vllm.environment import set_environment

    set_environment(config, cuda=video_llm.device.type == "cuda")
    from serving.vllm.answerer import ContinuousBatches

    return ContinuousBatches(video_llm, config, on_death)
