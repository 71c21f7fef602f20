"""LLaVA-OneVision: bilinearly pooled SigLIP frames and one newline row after the last of them."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import VideoFeatures, joint_grid
from cacovid.records import TokenGrid


class LlavaOnevision(VideoLLM):
    """``llava_onevision``."""

    model_types = ("llava_onevision",)
    takes_chunks = True

    def _run_tower(self, inputs: Mapping[str, Any], placeholder: str, fps: float) -> VideoFeatures:
        pixels = inputs["pixel_values_videos"].to(self.device, self.dtype)  # (1, T, 3, H, W)
        rows = self.model.get_video_features(pixel_values_videos=pixels).pooler_output[0]  # (N + 1, D)
        vision = self.model.config.vision_config
        side = -(-(vision.image_size // vision.patch_size) // 2)  # pooling halves the patches, rounding up
        grid = TokenGrid(pixels.shape[1], side, side)
        return VideoFeatures(
            features=rows[:-1],
            grid=grid,
            placeholder=placeholder,
            pinned=rows[-1:],
            pinned_slots=(grid.tokens,),
            seconds_per_step=1 / fps,
        )

    def joined(self, chunks: Sequence[VideoFeatures]) -> VideoFeatures:
        """Frames are read one by one; the newline comes once, after the last of them."""
        grid = joint_grid([chunk.grid for chunk in chunks])
        placeholder = self.processor.video_token * (grid.tokens + 1)
        return replace(chunks[-1], grid=grid, placeholder=placeholder, pinned_slots=(grid.tokens,))

    def _tower(self) -> tuple[Any, Any]:
        tower, layer = self.model.model.vision_tower, self.model.config.vision_feature_layer
        last = layer if isinstance(layer, int) else layer[-1]
        return tower, tower.encoder.layers[last if last < 0 else last - 1].self_attn

    def _pool_patches(self, patches: Tensor, grid: TokenGrid) -> Tensor:
        vision = self.model.config.vision_config
        own = patches[:, -((vision.image_size // vision.patch_size) ** 2) :]
        pooled: Tensor = self.model.model.apply_pooling(own)
        return pooled.flatten(0, 1)
