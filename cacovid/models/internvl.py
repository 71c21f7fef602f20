"""InternVL3 and 3.5: frames are images, each behind its number in the prompt."""

from collections.abc import Mapping
from math import isqrt
from typing import Any

from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import VideoFeatures
from cacovid.records import TokenGrid


class InternVL(VideoLLM):
    """``internvl``."""

    model_types = ("internvl",)
    modality = "image"

    def _run_tower(self, inputs: Mapping[str, Any], placeholder: str, fps: float) -> VideoFeatures:
        pixels = inputs["pixel_values"].to(self.device, self.dtype)  # (T, 3, H, W)
        rows = self.model.get_image_features(pixel_values=pixels).pooler_output  # (T, S, D)
        side = isqrt(rows.shape[1])
        grid = TokenGrid(rows.shape[0], side, side)
        return VideoFeatures(rows.flatten(0, 1), grid, placeholder, rows[0, :0], seconds_per_step=1 / fps)

    def _tower(self) -> tuple[Any, Any]:
        tower = self.model.model.vision_tower
        return tower, tower.encoder.layer[self.model.config.vision_feature_layer].attention
