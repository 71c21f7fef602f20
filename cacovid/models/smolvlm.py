"""SmolVLM2: frames are images, each behind its own timestamp in the prompt."""

from collections.abc import Mapping
from math import isqrt
from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import VideoFeatures
from cacovid.records import TokenGrid


class SmolVLM(VideoLLM):
    """``smolvlm``."""

    model_types = ("smolvlm",)
    modality = "image"

    def _run_tower(self, inputs: Mapping[str, Any], placeholder: str, fps: float) -> VideoFeatures:
        pixels = inputs["pixel_values"].to(self.device, self.dtype)  # (1, T, 3, H, W)
        mask = inputs["pixel_attention_mask"].to(self.device)
        output = self.model.get_image_features(pixel_values=pixels, pixel_attention_mask=mask)
        rows, frames = output.pooler_output[0], pixels.shape[1]  # (N, D)
        side = isqrt(rows.shape[0] // frames)  # frames are resized to squares
        return VideoFeatures(rows, TokenGrid(frames, side, side), placeholder, rows[:0], seconds_per_step=1 / fps)

    def _injection(self, rows: Tensor, deepstack: tuple[Tensor, ...]) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(pooler_output=rows.unbind())

    def _tower(self) -> tuple[Any, Any]:
        tower = self.model.model.vision_model
        return tower, tower.encoder.layers[-1].self_attn
