"""A tiny Video-LLM with one encoded clip, and what the untouched model makes of it: the slow reference.

The reference never touches the adapter's packing: pixels go through the processor and the model's own
tower, all columns stay, and a 4-D attention mask hides the dropped ones.

Shape legend: G combinations, k retained of N video tokens, L prompt columns, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cacovid.config import ModelConfig
from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import Encoded, VideoFeatures
from cacovid.models.loading import load_video_llm
from cacovid.records import TokenGrid
from cacovid.seeding import generator
from tests.support.tiny_models import save_tiny_model

PROMPT = "what is the colour of the circle?\nA. red\nB. blue\nC. green"
FRAMES, FPS = 8, 4.0  # for Qwen half a second a step, which is no default of anything
# Greatest difference of float32 logits (magnitude 1.5) by another order of summation; 1e-6 was seen.
FLOAT32 = 1e-5
# What a family makes of 8 frames of 48x48 pixels, and of 5 frames of 64x36: with dynamic resolution these stay wide.
GRIDS = {
    "llava_onevision": (TokenGrid(8, 3, 3), TokenGrid(5, 3, 3)),
    "llava_next_video": (TokenGrid(8, 3, 3), TokenGrid(5, 3, 3)),
    "qwen2_5_vl": (TokenGrid(4, 6, 6), TokenGrid(3, 4, 8)),  # two frames to a temporal step
    "qwen3_vl": (TokenGrid(4, 6, 6), TokenGrid(3, 4, 8)),
    "smolvlm": (TokenGrid(8, 3, 3), TokenGrid(5, 3, 3)),
    "internvl": (TokenGrid(8, 3, 3), TokenGrid(5, 3, 3)),
    "video_llama_3": (TokenGrid(8, 6, 6), TokenGrid(5, 4, 8)),
}


@dataclass
class Subject:
    """A loaded tiny model, its folder and one encoded clip."""

    folder: Path
    llm: VideoLLM
    frames: np.ndarray
    clip: VideoFeatures
    encoded: Encoded

    @property
    def tokens(self) -> int:
        return self.encoded.grid.tokens

    def raw(self, messages: list[Any] | None = None, videos: list[np.ndarray] | None = None) -> dict[str, Any]:
        """The processor's own output for a chat, ready for the untouched model."""
        videos = [self.frames] if videos is None else videos
        text = self.llm.processor.apply_chat_template(messages or [turn()], add_generation_prompt=True, tokenize=False)
        given: dict[str, Any] = {}
        if videos:
            given["videos"] = videos
            given["video_metadata"] = [
                {"total_num_frames": len(video), "fps": FPS, "frames_indices": list(range(len(video)))}
                for video in videos
            ]
            given |= {"do_sample_frames": False, **self.llm._video_kwargs()}
        inputs = self.llm.processor(text=text, return_tensors="pt", **given)
        return {name: value for name, value in inputs.items() if name != "video_metadata"}


def tiny_subject(model_type: str, folder: Path) -> Subject:
    """A fresh tiny model of ``model_type`` in ``folder`` that has watched a clip."""
    llm = load_video_llm(ModelConfig(path=str(save_tiny_model(model_type, folder)), device="cpu"))
    frames = random_frames(0)
    clip = llm.watch(frames, fps=FPS)
    return Subject(folder, llm, frames, clip, llm.encode(clip, PROMPT))


def random_frames(seed: int, count: int = FRAMES) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 48, 48, 3), dtype=np.uint8)


def turn(text: str = PROMPT, video: bool = True) -> dict[str, Any]:
    content = [{"type": "video"}] if video else []
    return {"role": "user", "content": [*content, {"type": "text", "text": text}]}


def random_keep(tokens: int, share: float, group: int, seed: int = 0) -> Tensor:
    """(G, k) distinct random subsets, ascending."""
    draws = torch.rand(group, tokens, generator=generator("keep", seed, tokens))
    return draws.topk(max(1, int(share * tokens)), dim=1).indices.sort(dim=1).values


@torch.no_grad()
def reference_logits(llm: VideoLLM, raw: dict[str, Any], hidden: Tensor, new: list[int]) -> Tensor:
    """(V,) last logits of the untouched model after ``new`` tokens, columns ``hidden`` seen by nobody else."""
    raw = dict(raw)
    more = torch.tensor([new], dtype=torch.long)
    raw["input_ids"] = torch.cat([raw["input_ids"], more], dim=1)
    if "mm_token_type_ids" in raw:
        raw["mm_token_type_ids"] = torch.cat([raw["mm_token_type_ids"], torch.zeros_like(more)], dim=1)
    raw.pop("attention_mask", None)
    length = raw["input_ids"].shape[1]
    if hasattr(llm.model.model, "get_rope_index"):
        raw["position_ids"] = llm.model.model.get_rope_index(**raw)[0]
    else:
        raw["position_ids"] = torch.arange(length).unsqueeze(0)
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    visible[:, hidden] = False
    visible.fill_diagonal_(True)  # a hidden column still sees itself, which nobody notices
    lowest = torch.finfo(llm.dtype).min
    raw["attention_mask"] = torch.zeros(1, 1, length, length, dtype=llm.dtype).masked_fill(~visible, lowest)
    floats = {name: value.to(llm.dtype) for name, value in raw.items() if torch.is_floating_point(value)}
    return llm.model(**raw | floats, use_cache=False).logits[0, -1].float()


@torch.no_grad()
def greedy_without_cache(llm: VideoLLM, prompt: dict[str, Any], count: int) -> list[list[int]]:
    """``count`` tokens for every row of a packed prompt, the whole sequence read again for each."""
    start = prompt["input_ids"].shape[1]
    for _ in range(count):
        new = llm.model(**prompt, use_cache=False).logits[:, -1].argmax(dim=-1, keepdim=True)
        prompt["input_ids"] = torch.cat([prompt["input_ids"], new], dim=1)
        prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
        following = prompt["position_ids"][..., -1:] + 1
        prompt["position_ids"] = torch.cat([prompt["position_ids"], following], dim=-1)
    return prompt["input_ids"][:, start:].tolist()


def hidden_columns(encoded: Encoded, keep: Tensor) -> Tensor:
    dropped = torch.ones(encoded.grid.tokens, dtype=torch.bool)
    dropped[keep] = False
    return encoded.video_columns[dropped]
