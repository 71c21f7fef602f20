"""The shapes of any model whose configuration and processor can be read, without its weights."""

from math import isqrt

import numpy as np

from cacovid.config import ModelConfig
from cacovid.models.loading import load_processor, read_config, resolve_path
from cacovid.planning.backbone import Model, VideoShape, meta_model


def local_shapes(config: ModelConfig, width: int, height: int) -> tuple[Model, VideoShape]:
    """The model on ``meta``, and what its own processor makes of frames of ``width`` x ``height`` pixels.

    Raises:
        UserError: No configuration or processor there, or a model type without adapter.
    """
    path = resolve_path(config.path)
    family, settings = read_config(path, config)
    model = meta_model(settings)
    llm = family(model, load_processor(path, config), config)
    frames = np.zeros((config.num_frames, height, width, 3), np.uint8)
    inputs, placeholder = llm.preprocess(frames, fps=1.0)
    ids = llm.processor.tokenizer(placeholder, add_special_tokens=False)["input_ids"]
    tokens = ids.count(llm.placeholder_id)
    pixels = inputs["pixel_values_videos" if "pixel_values_videos" in inputs else "pixel_values"]
    if "video_grid_thw" in inputs:
        steps, rows, columns = inputs["video_grid_thw"][0].tolist()
        patches, merge = rows * columns, isqrt(steps * rows * columns // tokens)
        grid = (rows // merge, columns // merge)
    else:
        steps, side = config.num_frames, isqrt(tokens // config.num_frames)
        size, patch = pixels.shape[-1], model.config.vision_config.patch_size
        patches = (size // (patch if isinstance(patch, int) else patch[0])) ** 2
        grid = (side, side)
    return model, VideoShape(
        frames_per_step=-(-config.num_frames // steps),
        text_per_step=(len(ids) - tokens) // steps,
        grid=grid,
        patches_per_step=patches,
        projected_per_step=patches if llm.kind.startswith("llava") else grid[0] * grid[1],
    )
