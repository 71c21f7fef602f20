"""Qwen2.5-VL and Qwen3-VL: several frames to a temporal step, M-RoPE; Qwen3-VL adds deepstack and timestamps.

Shape legend: T temporal steps, N video tokens, L prompt columns, B combinations, R injected rows, D width.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures
from transformers.vision_utils import get_vision_window_index

from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import VideoFeatures
from cacovid.models.tower_attention import pooled_runs
from cacovid.records import TokenGrid


class Qwen25VL(VideoLLM):
    """``qwen2_5_vl``: the clip is one run of placeholder tokens, its time is in the position ids."""

    model_types = ("qwen2_5_vl",)

    def _video_kwargs(self) -> dict[str, Any]:
        """Qwen's own limits on pixels (qwen-vl-utils), where this transformers leaves them to the caller.

        Published Qwen2.5-VL repositories state limits for images alone. transformers takes these for videos
        too: frames of twenty times the pixels that the model was trained on.
        """
        videos, images = self.processor.video_processor, self.processor.image_processor
        kwargs: dict[str, Any] = {"cap_pixels_per_frame": True} if hasattr(videos, "cap_pixels_per_frame") else {}
        if isinstance(videos, Qwen2VLVideoProcessor) and videos.size == images.size:
            kwargs["size"] = Qwen2VLVideoProcessor.size
        return kwargs

    def _run_tower(self, inputs: Mapping[str, Any], placeholder: str, fps: float) -> VideoFeatures:
        pixels = inputs["pixel_values_videos"].to(self.device, self.dtype)
        patches = inputs["video_grid_thw"].to(self.device)  # (1, 3): T, patch rows, patch columns
        output = self.model.get_video_features(pixel_values_videos=pixels, video_grid_thw=patches)
        steps, rows, columns = patches[0].tolist()
        merge = self.model.config.vision_config.spatial_merge_size
        features = output.pooler_output[0]  # (N, D)
        return VideoFeatures(
            features=features,
            grid=TokenGrid(steps, rows // merge, columns // merge),
            placeholder=placeholder,
            pinned=features[:0],
            deepstack=self._deepstack(output),
            seconds_per_step=self.model.config.vision_config.temporal_patch_size / fps,
        )

    def _deepstack(self, output: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
        return ()

    def _tower(self) -> tuple[Any, Any]:
        return self.model.model.visual, self.model.model.visual.blocks[-1].attn

    def _pool_patches(self, patches: Tensor, grid: TokenGrid) -> Tensor:
        """The tower reads its windows one after the other: back into the grid's order."""
        vision = self.model.config.vision_config
        merge = vision.spatial_merge_size
        shape = torch.tensor([[grid.frames, grid.rows * merge, grid.columns * merge]])
        order, _ = get_vision_window_index(shape, merge, vision.window_size, vision.patch_size)
        return pooled_runs(patches, grid)[order.argsort().to(patches.device)]

    def _positions(self, input_ids: Tensor, clips: Sequence[VideoFeatures]) -> Tensor:
        """(4, L): the text row 0..L-1, then time, height and width."""
        types = torch.tensor(self.processor.create_mm_token_type_ids([input_ids.tolist()]), device=self.device)
        types[0, self._rows_in_place_of_text(input_ids, clips)] = 0
        clips = [clip for clip in clips if clip.grid.tokens]
        merge = self.model.config.vision_config.spatial_merge_size
        patches = [(clip.grid.frames, clip.grid.rows * merge, clip.grid.columns * merge) for clip in clips]
        rope, _ = self.model.model.get_rope_index(
            input_ids.unsqueeze(0),
            types,
            video_grid_thw=torch.tensor(patches, device=self.device) if clips else None,
            second_per_grid_ts=[clip.seconds_per_step for clip in clips] if clips else None,
        )
        return torch.cat([torch.arange(input_ids.shape[0], device=self.device).unsqueeze(0), rope[:, 0]])

    def _rows_in_place_of_text(self, input_ids: Tensor, clips: Sequence[VideoFeatures]) -> Tensor:
        """Columns that :meth:`rows_as_clip` fills: they are numbered as text."""
        injected = (input_ids == self.placeholder_id).nonzero().squeeze(1)
        parts = injected.split([clip.features.shape[0] + len(clip.pinned_slots) for clip in clips])
        given = [part for part, clip in zip(parts, clips, strict=True) if not clip.grid.tokens]
        return torch.cat(given) if given else injected[:0]

    def _injection(self, rows: Tensor, deepstack: tuple[Tensor, ...]) -> BaseModelOutputWithPooling:
        return BaseModelOutputWithPooling(pooler_output=rows.unbind())


class Qwen3VL(Qwen25VL):
    """``qwen3_vl``: a timestamp and markers around every temporal step; tower levels for the first layers."""

    model_types = ("qwen3_vl",)
    has_deepstack = True
    fewest_frames = 2

    def _pool_patches(self, patches: Tensor, grid: TokenGrid) -> Tensor:
        return pooled_runs(patches, grid)

    def _deepstack(self, output: Any) -> tuple[Tensor, ...]:  # noqa: ANN401
        return tuple(level[0] for level in output.deepstack_features)

    def _injection(self, rows: Tensor, deepstack: tuple[Tensor, ...]) -> BaseModelOutputWithPooling:
        levels = [level.unbind() for level in deepstack]
        return BaseModelOutputWithDeepstackFeatures(pooler_output=rows.unbind(), deepstack_features=levels)
