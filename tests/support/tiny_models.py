"""Tiny random Video-LLMs in ordinary Hugging Face folders, one for each family.

``save_tiny_model(model_type, folder)`` writes configuration, random weights, tokenizer, processor and chat
template, so that ``load_video_llm(ModelConfig(path=folder))`` works as for a real model.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf  # its names load lazily, after torchvision has been mended
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

import cacovid.models  # noqa: F401 - see above

_TEXT = """user assistant system what is the colour shape of object red green blue yellow white circle square
triangle cross where when how many left right before after frame one two three seconds time video answer letter"""
WORDS = _TEXT.split()
SYMBOLS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;?!<>()[]'\"/-+%_|\n")
VOCABULARY = 192  # room for every special token below

VICUNA_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<video>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %} "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}VIDEO{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tiny_model(model_type: str, folder: Path, seed: int = 0, head: int = 8) -> Path:
    """Write a tiny random model of ``model_type``, with attention heads of ``head`` channels, to ``folder``."""
    torch.manual_seed(seed)
    model, processor = BUILDERS[model_type](head)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(5)  # sharp attention: outputs depend visibly on every position and token
        model.lm_head.weight[processor.tokenizer.eos_token_id] = 0.0  # greedy answers never end by chance
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def word_tokenizer(*special: str, **named: str) -> hf.PreTrainedTokenizerFast:
    """A word-level tokenizer; unknown words fall apart into characters, nothing is ever unknown."""
    tokens = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>", *special, *named.values()]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys([*tokens, *WORDS, *SYMBOLS]))}
    assert len(vocabulary) <= VOCABULARY
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words = "|".join(rf"\b{re.escape(word)}\b" for word in sorted(WORDS, key=len, reverse=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" +"), behavior="removed"),
            pre_tokenizers.Split(Regex(rf"{words}|[^ ]"), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(tokens)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        pad_token="<pad>",
        eos_token="<|im_end|>",
        extra_special_tokens=named or ["<|im_start|>"],
    )


def begin_with_bos(tokenizer: hf.PreTrainedTokenizerFast) -> hf.PreTrainedTokenizerFast:
    """``<s>`` before every text, as Llama's tokenizer puts it."""
    tokenizer.bos_token = "<s>"
    begin = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=begin)
    return tokenizer


def _text_sizes(head: int, **changes: Any) -> dict[str, Any]:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 32 // head,
        "num_key_value_heads": max(1, 16 // head),
        "max_position_embeddings": 4096,
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": 3,
    }
    return sizes | changes


def _template(video_token: str) -> str:
    return CHAT_TEMPLATE.replace("VIDEO", video_token)


def _tower_sizes(**changes: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return sizes | changes


Built = tuple[hf.PreTrainedModel, hf.ProcessorMixin]
SQUARE = {"height": 40, "width": 40}


def _llava_onevision(head: int) -> Built:
    """5x5 patches pooled to 3x3 tokens a frame, and a newline."""
    tokenizer = word_tokenizer("<image>", "<video>")
    image_id, video_id = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**_tower_sizes(image_size=40, patch_size=8, vision_use_head=False)),
        text_config=hf.Qwen2Config(**_text_sizes(head)),
        image_token_index=image_id,
        video_token_index=video_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=[[40, 40]]),
        tokenizer=tokenizer,
        video_processor=hf.LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=25,
        vision_feature_select_strategy="full",
        chat_template=_template("<video>"),
    )
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


def _llava_next_video(head: int) -> Built:
    """6x6 patches (and a class token) pooled to 3x3 tokens a frame; a Llama and its beginning of text."""
    tokenizer = begin_with_bos(word_tokenizer("<s>", "<image>", "<video>"))
    image_id, video_id = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    config = hf.LlavaNextVideoConfig(
        vision_config=hf.CLIPVisionConfig(**_tower_sizes(image_size=48, patch_size=8, projection_dim=32)),
        text_config=hf.LlamaConfig(**_text_sizes(head)),
        image_token_index=image_id,
        video_token_index=video_id,
        image_grid_pinpoints=[[48, 48]],
    )
    size = {"shortest_edge": 48}
    crop = {"height": 48, "width": 48}
    processor = hf.LlavaNextVideoProcessor(
        video_processor=hf.LlavaNextVideoVideoProcessor(size=size, crop_size=crop),
        image_processor=hf.LlavaNextImageProcessor(size=size, crop_size=crop, image_grid_pinpoints=[[48, 48]]),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=VICUNA_TEMPLATE,
    )
    return hf.LlavaNextVideoForConditionalGeneration(config), processor


MARKERS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
# Patches of 4x4 pixels, merged 2x2: a 48x48 frame holds 6x6 tokens.
PATCHES = {"patch_size": 4, "temporal_patch_size": 2, "merge_size": 2}
IMAGE_PIXELS = {"shortest_edge": 64, "longest_edge": 96 * 96}  # of a picture: the models' videos have other limits
PIXELS = {"shortest_edge": 64, "longest_edge": 48 * 48}  # of a frame
CLIP_PIXELS = {"shortest_edge": 64, "longest_edge": 48 * 48 * 8}  # of a whole clip


def _qwen_processor(kind: type[hf.ProcessorMixin], videos: hf.BaseVideoProcessor) -> hf.ProcessorMixin:
    return kind(
        image_processor=hf.Qwen2VLImageProcessor(size=IMAGE_PIXELS, **PATCHES),
        tokenizer=word_tokenizer(*MARKERS),
        video_processor=videos,
        chat_template=_template("<|vision_start|><|video_pad|><|vision_end|>"),
    )


def _sections(head: int) -> list[int]:
    return [head // 4, head // 8, head // 8]


def _qwen_ids(processor: hf.ProcessorMixin) -> dict[str, int]:
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    return dict(zip(names, processor.tokenizer.convert_tokens_to_ids(list(MARKERS)), strict=True))


def _qwen2_5_vl(head: int) -> Built:
    processor = _qwen_processor(hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor(size=PIXELS, **PATCHES))
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": 4,
        "window_size": 16,
        "fullatt_block_indexes": [1],
        "out_hidden_size": 32,
        "tokens_per_second": 2,
    }
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": _sections(head)}
    text = _text_sizes(head, rope_parameters=rope)
    config = hf.Qwen2_5_VLConfig(vision_config=vision, text_config=text, **_qwen_ids(processor))
    return hf.Qwen2_5_VLForConditionalGeneration(config), processor


def _qwen3_vl(head: int) -> Built:
    processor = _qwen_processor(hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor(size=CLIP_PIXELS, **PATCHES))
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "patch_size": 4,
        "out_hidden_size": 32,
        "num_position_embeddings": 144,
        "deepstack_visual_indexes": [0, 1],
    }
    rope = {
        "rope_type": "default",
        "rope_theta": 10_000.0,
        "mrope_section": [head // 4, head // 8, head // 8],
        "mrope_interleaved": True,
    }
    text = _text_sizes(head, rope_parameters=rope, head_dim=head)
    config = hf.Qwen3VLConfig(vision_config=vision, text_config=text, **_qwen_ids(processor))
    return hf.Qwen3VLForConditionalGeneration(config), processor


def _smolvlm(head: int) -> Built:
    """6x6 patches, shuffled 2x2 into 3x3 tokens a frame."""
    tokenizer = word_tokenizer("<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", "<video>")
    config = hf.SmolVLMConfig(
        vision_config=_tower_sizes(image_size=48, patch_size=8),
        text_config=hf.LlamaConfig(**_text_sizes(head)),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    edge = {"longest_edge": 48}
    processor = hf.SmolVLMProcessor(
        image_processor=hf.SmolVLMImageProcessor(size=edge, max_image_size=edge),
        tokenizer=tokenizer,
        video_processor=hf.SmolVLMVideoProcessor(size=edge, max_image_size=edge, num_frames=64, fps=1),
        image_seq_len=9,
        chat_template=_template("<video>"),
    )
    return hf.SmolVLMForConditionalGeneration(config), processor


def _internvl(head: int) -> Built:
    """6x6 patches (and a class token), shuffled 2x2 into 3x3 tokens a frame; a Qwen3 with q/k norms as in 3.5."""
    tokenizer = word_tokenizer(
        start_image_token="<img>", end_image_token="</img>", context_image_token="<IMG_CONTEXT>", video_token="<video>"
    )
    size = {"height": 48, "width": 48}
    config = hf.InternVLConfig(
        vision_config=hf.InternVLVisionConfig(**_tower_sizes(image_size=48, patch_size=8)),
        text_config=hf.Qwen3Config(**_text_sizes(head, head_dim=head)),
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=9,
        tie_word_embeddings=False,
    )
    processor = hf.InternVLProcessor(
        image_processor=hf.GotOcr2ImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=hf.InternVLVideoProcessor(size=size),
        image_seq_length=9,
        chat_template=_template("<video>"),
    )
    return hf.InternVLForConditionalGeneration(config), processor


def _video_llama_3(head: int) -> Built:
    tokenizer = word_tokenizer(*MARKERS)
    patches = PATCHES | {"temporal_patch_size": 1}
    processor = hf.VideoLlama3Processor(
        image_processor=hf.VideoLlama3ImageProcessor(size=IMAGE_PIXELS, **patches),
        tokenizer=tokenizer,
        video_processor=hf.VideoLlama3VideoProcessor(size=CLIP_PIXELS, **patches),
        chat_template=_template("<|video_pad|>"),
    )
    ids = _qwen_ids(processor)
    config = hf.VideoLlama3Config(
        vision_config=_tower_sizes(patch_size=4),
        text_config=hf.Qwen2Config(**_text_sizes(head)),
        image_token_id=ids["image_token_id"],
        video_token_id=ids["video_token_id"],
    )
    return hf.VideoLlama3ForConditionalGeneration(config), processor


BUILDERS: dict[str, Callable[[int], Built]] = {
    "llava_onevision": _llava_onevision,
    "llava_next_video": _llava_next_video,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "smolvlm": _smolvlm,
    "internvl": _internvl,
    "video_llama_3": _video_llama_3,
}
