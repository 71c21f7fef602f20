"""Positions by rule: retained tokens keep theirs as long as the whole prompt stays within what the model has seen."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cacovid.answering.prompting import format_prompt
from cacovid.compressor import model_config_for
from cacovid.config import ModelConfig, TrainConfig
from cacovid.embedded.clips import draw_clip
from cacovid.embedded.dataset import question_record
from cacovid.embedded.questions import clip_questions
from cacovid.limits import EMBEDDED_LENGTHS
from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import Encoded
from cacovid.models.loading import load_video_llm
from cacovid.policy.build import policy_for
from tests.support.reference_model import random_keep, tiny_subject


@pytest.fixture(scope="module")
def embedded() -> VideoLLM:
    return load_video_llm(ModelConfig(device="cpu"))


def asked(llm: VideoLLM, clips: int) -> Encoded:
    """A question about the first of ``clips`` clips of 8 frames, shown one after the other."""
    drawn = [draw_clip(seed) for seed in range(clips)]
    prompt = format_prompt(question_record(drawn[0], clip_questions(drawn[0])[0], 0, ""))
    return llm.encode(llm.watch(np.concatenate([clip.frames for clip in drawn])), prompt)


def test_the_default_keeps_positions_at_the_trained_length_and_renumbers_beyond(embedded: VideoLLM) -> None:
    assert embedded.config.positions == "auto"
    for clips, expected in ((1, "original"), (2, "contiguous")):
        encoded = asked(embedded, clips)
        assert (encoded.length <= EMBEDDED_LENGTHS["embedded"]) == (expected == "original")
        assert embedded.numbering(encoded) == expected
        keep = random_keep(encoded.grid.tokens, 0.1, group=2)
        by_rule, told = embedded.pack(encoded, keep), embedded.pack(encoded, keep, expected)
        assert torch.equal(by_rule["position_ids"], told["position_ids"])
        assert int(by_rule["position_ids"].max()) < EMBEDDED_LENGTHS["embedded"]


def test_what_is_asked_for_wins_over_the_rule(embedded: VideoLLM) -> None:
    encoded = asked(embedded, 2)
    assert embedded.numbering(encoded, "original") == "original"
    assert embedded.numbering(asked(embedded, 1), "contiguous") == "contiguous"


@pytest.mark.parametrize("kind", ["llava_onevision", "qwen2_5_vl"])
def test_the_trained_length_counts_the_positions_that_the_layers_see(kind: str, tmp_path: Path) -> None:
    """With M-RoPE these are fewer than the prompt's columns: a step's tokens share their time."""
    subject = tiny_subject(kind, tmp_path)
    llm = subject.llm
    assert llm.trained_length == llm.model.config.get_text_config().max_position_embeddings
    reached = subject.encoded.reach
    assert reached == int(subject.encoded.policy_input().position_ids.max()) + 1
    assert (reached < subject.encoded.length) == (kind == "qwen2_5_vl")
    for length, expected in ((reached, "original"), (reached - 1, "contiguous")):
        llm.config = llm.config.model_copy(update={"trained_length": length, "positions": "auto"})
        assert llm.numbering(subject.encoded) == expected


def test_a_policy_keeps_the_rule_and_the_length_it_was_trained_with(embedded: VideoLLM) -> None:
    model = ModelConfig(positions="auto", trained_length=500)
    metadata = policy_for(embedded, TrainConfig(model=model)).metadata
    loaded = model_config_for(metadata, num_frames=64)
    assert (loaded.positions, loaded.trained_length, loaded.num_frames) == ("auto", 500, 64)
