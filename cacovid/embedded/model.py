"""The tiny Video-LLM of the embedded benchmark: an ordinary LLaVA-OneVision, 0.7 million parameters.

SigLIP tower (width 64, 2 layers, patch 8), whose 12x12 patches a frame are pooled to 6x6 tokens of one
16-pixel cell each; Qwen2 language model (width 128, 4 layers, 4 heads on 2 key-value heads).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from transformers import (
    GenerationConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    Qwen2Config,
    SiglipVisionConfig,
)

from cacovid.embedded.rendering import PIXELS
from cacovid.embedded.tokenizer import (
    CHAT_TEMPLATE,
    IMAGE,
    PAD,
    TURN_END,
    VIDEO,
    VOCABULARY,
    build_tokenizer,
)
from cacovid.seeding import derive_seed

PATCH: Final = 8
WIDTH: Final = 128
HEAD: Final = 32  # width of a head
TOWER_WIDTH: Final = 64
_INITIAL_STD = 0.05  # wider than Qwen2's 0.02, which suits layers of thousands, not 128


@dataclass(frozen=True)
class LanguageShape:
    """What the worlds' language models differ in."""

    words: int = len(VOCABULARY)
    rope_theta: float = 1e4
    heads: int = 4  # twice as many as key-value heads, 32 wide
    inner: int = 2 * WIDTH  # of the feed-forward layers


def model_config(shape: LanguageShape) -> LlavaOnevisionConfig:
    """The architecture."""
    vision = SiglipVisionConfig(
        hidden_size=TOWER_WIDTH,
        intermediate_size=2 * TOWER_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=PIXELS,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=shape.words,
        hidden_size=WIDTH,
        intermediate_size=shape.inner,
        num_hidden_layers=4,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads // 2,
        head_dim=HEAD,
        max_position_embeddings=4096,
        initializer_range=_INITIAL_STD,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=VOCABULARY[TURN_END],
        pad_token_id=VOCABULARY[PAD],
    )
    return LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=VOCABULARY[IMAGE],
        video_token_index=VOCABULARY[VIDEO],
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        image_grid_pinpoints=[[PIXELS, PIXELS]],
        tie_word_embeddings=True,
    )


def new_model(seed: int, shape: LanguageShape | None = None) -> LlavaOnevisionForConditionalGeneration:
    """An untrained model; its initial weights depend on ``seed`` alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed("embedded model", seed))
        model = LlavaOnevisionForConditionalGeneration(model_config(shape or LanguageShape()))
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=VOCABULARY[TURN_END], pad_token_id=VOCABULARY[PAD], max_new_tokens=8
    )
    return model.float()


def save_model(
    model: LlavaOnevisionForConditionalGeneration, folder: Path, vocabulary: dict[str, int] = VOCABULARY
) -> None:
    """Write weights, configuration, tokenizer, processor and chat template in Hugging Face's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    square = {"height": PIXELS, "width": PIXELS}
    levels = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=square, image_grid_pinpoints=[[PIXELS, PIXELS]], **levels),
        tokenizer=build_tokenizer(vocabulary),
        video_processor=LlavaOnevisionVideoProcessor(size=square, do_sample_frames=False, **levels),
        num_image_tokens=(PIXELS // PATCH) ** 2,
        vision_feature_select_strategy="full",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        video_token=VIDEO,
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def pixels(frames: torch.Tensor) -> torch.Tensor:
    """Frames (..., H, W, 3) uint8 as the tower reads them: (..., 3, H, W) float32 in [-1, 1]."""
    return frames.movedim(-1, -3).float() / 127.5 - 1
