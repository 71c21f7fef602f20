"""Accuracy of a Video-LLM on embedded clips with all tokens, through the ordinary Hugging Face path."""

from collections.abc import Sequence

import torch
from transformers import LlavaOnevisionForConditionalGeneration, ProcessorMixin

from cacovid.answering.prompting import format_prompt
from cacovid.embedded.clips import draw_clip
from cacovid.embedded.dataset import question_record
from cacovid.embedded.questions import clip_questions
from cacovid.embedded.video_writer import round_trip


def chat_prompt(processor: ProcessorMixin, text: str) -> str:
    """A user's turn with one video, up to where the answer begins."""
    content = [{"type": "video"}, {"type": "text", "text": text}]
    rendered: str = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    return rendered


@torch.no_grad()
def full_accuracy(
    model: LlavaOnevisionForConditionalGeneration,
    processor: ProcessorMixin,
    seeds: Sequence[int],
    *,
    decoded: bool,
) -> float:
    """Share of right answers (most probable next token of all) on two questions a clip.

    Args:
        decoded: read the frames back from H.264 instead of taking them as drawn.
    """
    right, asked = 0, 0
    for seed in seeds:
        clip = draw_clip(seed)
        frames = round_trip(clip.frames) if decoded else clip.frames
        items = [question_record(clip, question, 0, "") for question in clip_questions(clip)]
        prompts = [chat_prompt(processor, format_prompt(item, "")) for item in items]
        inputs = processor(text=prompts, videos=[frames] * len(items), return_tensors="pt", padding=True)
        tokens = model(**inputs).logits[:, -1].argmax(-1).tolist()
        answers = processor.tokenizer.convert_tokens_to_ids([item.answer for item in items])
        right += sum(token == answer for token, answer in zip(tokens, answers, strict=True))
        asked += len(items)
    return right / asked
