"""One GPU for two: vLLM's share of it, and what tower and policies leave."""

import torch
from torch import nn

from cacovid.errors import UserError
from cacovid.models.adapter import VideoLLM
from serving.config import GIB, VllmConfig


def leave_layers(video_llm: VideoLLM) -> None:
    """Free the language model's layers: ``video_llm`` encodes on, and answers no more.

    Its fingerprint, which policies are checked against, is taken before.
    """
    assert video_llm.fingerprint
    assert video_llm.encoding_key
    video_llm.model.get_decoder().layers = nn.ModuleList()
    if video_llm.device.type == "cuda":
        torch.cuda.empty_cache()


def check_share(video_llm: VideoLLM, config: VllmConfig) -> None:
    """Raise UserError where vLLM's share of the GPU is not free."""
    if video_llm.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(video_llm.device)
        compare_share(free, total, config)


def compare_share(free: int, total: int, config: VllmConfig) -> None:
    """Raise UserError where ``free`` of ``total`` bytes are less than vLLM's share."""
    share = config.gpu_memory_utilization
    if share * total > free:
        raise UserError(
            f"engine.vllm.gpu_memory_utilization={share} asks for {share * total / GIB:.1f} of {total / GIB:.1f} GiB "
            f"of the GPU, but {free / GIB:.1f} GiB are free beside tower and policies: set it to at most "
            f"{int(100 * free / total) / 100}, or give the replica a GPU of its own"
        )
