"""A replica with the shape of a public LLaVA-OneVision and random weights: nothing is downloaded.

Only the words are not the real ones: the embedded model's tokenizer and chat template stand in.
"""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from cacovid.config import ModelConfig
from cacovid.errors import UserError
from cacovid.models.adapter import VideoLLM
from cacovid.models.llava_onevision import LlavaOnevision
from cacovid.models.loading import resolve_device, resolve_dtype, resolve_path
from cacovid.planning.backbone import Backbone, known_backbones
from cacovid.seeding import derive_seed

# A real shape's numbers in miniature: the same code at 4x4 tokens a frame, for a CPU.
REDUCED_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 256,
}
REDUCED_VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 112,
}


def shape_of(path: str, *, reduced: bool = False) -> dict[str, Any]:
    """The configuration numbers of the LLaVA-OneVision with hub id ``path``, or its miniature.

    Raises:
        UserError: No such shape is shipped, or it is of another family.
    """
    known = {hub: shape for hub, shape in known_backbones().items() if _is_llava_onevision(shape)}
    if path not in known:
        raise UserError(f"model.path={path!r} is no shape that can be measured: use one of {', '.join(sorted(known))}")
    numbers = dict(known[path].config)
    if reduced:
        numbers["text_config"] = {**numbers["text_config"], **REDUCED_TEXT}
        numbers["vision_config"] = {**numbers["vision_config"], **REDUCED_VISION}
    return numbers


def random_llava_onevision(numbers: dict[str, Any], config: ModelConfig, seed: int = 0) -> VideoLLM:
    """A frozen random replica of shape ``numbers`` that reads clips and questions like a real one.

    Args:
        numbers: From :func:`shape_of`.
        config: Its device, type, attention kernel and batch size are used.
        seed: Of the weights.
    """
    device = resolve_device(config.device)
    processor = AutoProcessor.from_pretrained(resolve_path("embedded"))
    vision = numbers["vision_config"]
    processor.video_processor.size = {"height": vision["image_size"], "width": vision["image_size"]}
    processor.num_image_tokens = (vision["image_size"] // vision["patch_size"]) ** 2
    image, video = processor.tokenizer.convert_tokens_to_ids([processor.image_token, processor.video_token])
    settings = {**numbers, "image_token_index": image, "video_token_index": video}
    model_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    with torch.random.fork_rng(), device:
        torch.manual_seed(derive_seed(seed, "random model"))
        model = AutoModelForImageTextToText.from_config(
            model_config, dtype=resolve_dtype(config.dtype, device), attn_implementation=config.attention
        )
    return LlavaOnevision(model, processor, config)


def _is_llava_onevision(backbone: Backbone) -> bool:
    return backbone.config["model_type"] in LlavaOnevision.model_types
