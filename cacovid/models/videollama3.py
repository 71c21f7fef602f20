"""VideoLLaMA3: a timestamp before every frame's tokens.

The processor's own compression, which drops patches that hardly changed since the frame before, is turned
off: it would leave holes in the grid, and choosing tokens is the compression policy's task here.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import VideoFeatures
from cacovid.models.tower_attention import pooled_runs
from cacovid.records import TokenGrid


class VideoLlama3(VideoLLM):
    """``video_llama_3``."""

    model_types = ("video_llama_3",)

    def _video_kwargs(self) -> dict[str, Any]:
        return {"use_token_compression": False}

    def _run_tower(self, inputs: Mapping[str, Any], placeholder: str, fps: float) -> VideoFeatures:
        patches, merges = inputs["video_grid_thw"], inputs["video_merge_sizes"]
        output = self.model.get_video_features(
            pixel_values_videos=inputs["pixel_values_videos"].to(self.device, self.dtype),
            video_grid_thw=patches.to(self.device),
            video_merge_sizes=merges.to(self.device),
        )
        features, merge = output.pooler_output[0], int(merges[0])  # (N, D)
        steps, rows, columns = patches[0].tolist()
        grid = TokenGrid(steps, rows // merge, columns // merge)
        return VideoFeatures(features, grid, placeholder, features[:0], seconds_per_step=1 / fps)

    def _injection(self, rows: Tensor, deepstack: tuple[Tensor, ...]) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(pooler_output=rows.unbind())

    def _tower(self) -> tuple[Any, Any]:
        tower = self.model.model.vision_model
        return tower, tower.encoder.layers[-1].self_attn

    def _pool_patches(self, patches: Tensor, grid: TokenGrid) -> Tensor:
        return pooled_runs(patches, grid)
