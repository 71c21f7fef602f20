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
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from cacovid.models.torchvision_mend import mend_torchvision

mend_torchvision()

WORDS = (
    "user assistant system what is the colour shape of object red green blue yellow white circle square triangle "
    "cross where when how many left right before after frame one two three seconds time video answer with letter"
).split()
SYMBOLS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:;?!<>()[]'\"/-+%_|") + ["\n"]
VOCABULARY = 192  # room for every special token below

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}{% if part['type'] == 'video' %}VIDEO{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def save_tiny_model(model_type: str, folder: Path, seed: int = 0) -> Path:
    """Write a tiny random model of ``model_type`` and its processor to ``folder``."""
    model, processor = BUILDERS[model_type](seed)
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


def _text_sizes(**changes: Any) -> dict[str, Any]:
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "pad_token_id": 1,
        "bos_token_id": None,
        "eos_token_id": 3,
    }
    return sizes | changes


def _template(video_token: str) -> str:
    return CHAT_TEMPLATE.replace("VIDEO", video_token)


def _llava_onevision(seed: int) -> tuple[hf.PreTrainedModel, hf.ProcessorMixin]:
    tokenizer = word_tokenizer("<image>", "<video>")
    image_id, video_id = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    vision = hf.SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=40,
        patch_size=8,
        vision_use_head=False,
    )
    config = hf.LlavaOnevisionConfig(
        vision_config=vision,
        text_config=hf.Qwen2Config(**_text_sizes()),
        image_token_index=image_id,
        video_token_index=video_id,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=True,
    )
    size = {"height": 40, "width": 40}
    processor = hf.LlavaOnevisionProcessor(
        image_processor=hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=[[40, 40]]),
        tokenizer=tokenizer,
        video_processor=hf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=25,
        vision_feature_select_strategy="full",
        chat_template=_template("<video>"),
    )
    torch.manual_seed(seed)
    return hf.LlavaOnevisionForConditionalGeneration(config), processor


BUILDERS: dict[str, Callable[[int], tuple[hf.PreTrainedModel, hf.ProcessorMixin]]] = {
    "llava_onevision": _llava_onevision
}
