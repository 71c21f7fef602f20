"""Shapes of public Video-LLMs: their configuration's numbers and how they turn frames into tokens.

Shape legend: T temporal steps, N video tokens, D width.
"""

import tomllib
from importlib.resources import files
from typing import Any

import torch
from pydantic import Field
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.models.qwen2_vl.video_processing_qwen2_vl import smart_resize

from cacovid.config import Positive, Section
from cacovid.records import TokenGrid

Model = Any  # a transformers model or configuration: the library ships no types


class VideoShape(Section):
    """How many tokens and patches a clip gives: a fixed ``grid``, or one that follows the frame's size."""

    frames_per_step: Positive = Field(description="frames merged into one temporal step")
    text_per_step: int = Field(0, ge=0, description="text columns around each step, e.g. its timestamp")
    grid: tuple[int, int] | None = Field(None, description="rows and columns of a step, where fixed")
    patches_per_step: int = Field(0, ge=0, description="vision patches of a step, where fixed")
    projected_per_step: int = Field(0, ge=0, description="rows of a step that the projector reads, where fixed")
    pixels_per_token: int = Field(0, ge=0, description="side in pixels of one token, where dynamic")
    patches_per_token: int = Field(0, ge=0, description="vision patches of one token, where dynamic")
    min_pixels: int = Field(0, ge=0, description="smallest frame after resizing, where dynamic")
    max_pixels: int = Field(0, ge=0, description="largest frame after resizing, where dynamic")
    max_clip_pixels: int = Field(0, ge=0, description="most pixels of all frames together, where dynamic")

    def token_grid(self, frames: int, width: int, height: int) -> TokenGrid:
        """The grid of ``frames`` frames of ``width`` x ``height`` pixels."""
        steps = -(-frames // self.frames_per_step)
        if self.grid is not None:
            return TokenGrid(steps, *self.grid)
        side = self.pixels_per_token
        most = max(self.min_pixels, min(self.max_pixels, self.max_clip_pixels // frames))
        rows, columns = smart_resize(height, width, side, self.min_pixels, most)
        return TokenGrid(steps, rows // side, columns // side)

    def patches(self, grid: TokenGrid) -> int:
        """Vision patches of one temporal step."""
        return self.patches_per_step or grid.per_frame * self.patches_per_token

    def projected(self, grid: TokenGrid) -> int:
        """Rows of one temporal step that go through the projector."""
        return self.projected_per_step or grid.per_frame


class Backbone(Section):
    """One public Video-LLM."""

    hub: str = Field(description="hub id")
    published_parameters: float = Field(description="its number of parameters as published")
    video: VideoShape
    config: dict[str, Any] = Field(description="the transformers configuration's own numbers")

    def meta_model(self) -> Model:
        """The real architecture on torch's ``meta`` device: shapes without memory."""
        numbers = dict(self.config)
        return meta_model(AutoConfig.for_model(numbers.pop("model_type"), **numbers))


def meta_model(config: Model) -> Model:
    """The model of a transformers configuration on the ``meta`` device."""
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def known_backbones() -> dict[str, Backbone]:
    """The shipped shapes by hub id."""
    folder = files("cacovid.planning") / "backbones"
    found = [entry for entry in folder.iterdir() if entry.name.endswith(".toml")]
    backbones = [Backbone(**tomllib.loads(entry.read_text(encoding="utf-8"))) for entry in found]
    return {backbone.hub: backbone for backbone in sorted(backbones, key=lambda each: each.hub)}
