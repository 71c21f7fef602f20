"""LLaVA-NeXT-Video: pooled CLIP frames in one run of placeholder tokens, no separators."""

from collections.abc import Mapping
from math import isqrt
from typing import Any

from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import VideoFeatures
from cacovid.records import TokenGrid


class LlavaNextVideo(VideoLLM):
    """``llava_next_video``."""

    model_types = ("llava_next_video",)

    def _run_tower(self, inputs: Mapping[str, Any], placeholder: str, fps: float) -> VideoFeatures:
        pixels = inputs["pixel_values_videos"].to(self.device, self.dtype)  # (1, T, 3, H, W)
        rows = self.model.get_video_features(pixel_values_videos=pixels).pooler_output[0]  # (N, D)
        frames = pixels.shape[1]
        side = isqrt(rows.shape[0] // frames)  # frames are cropped to squares
        return VideoFeatures(rows, TokenGrid(frames, side, side), placeholder, rows[:0], seconds_per_step=1 / fps)

    def _tower(self) -> tuple[Any, Any]:
        tower, layer = self.model.model.vision_tower, self.model.config.vision_feature_layer
        last = layer if isinstance(layer, int) else layer[-1]
        return tower, tower.encoder.layers[last if last < 0 else last - 1].self_attn
