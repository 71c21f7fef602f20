"""Clips that are not square, not even in number, still, too short or too long a shape: every family."""

import numpy as np
import pytest
import torch
import transformers as hf

from cacovid.config import ModelConfig
from cacovid.errors import BadItem
from cacovid.models.loading import load_video_llm
from cacovid.models.qwen_vl import Qwen25VL
from tests.support.reference_model import (
    FLOAT32,
    FPS,
    GRIDS,
    PROMPT,
    Subject,
    hidden_columns,
    random_frames,
    random_keep,
    reference_logits,
    tiny_subject,
    turn,
)
from tests.support.tiny_models import BUILDERS


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return tiny_subject(request.param, tmp_path_factory.mktemp(request.param))


def wide_clip() -> np.ndarray:
    """An odd number of frames, wider than high, of which the last three show the same."""
    frames = np.random.default_rng(3).integers(0, 256, (5, 36, 64, 3), dtype=np.uint8)
    frames[3:] = frames[2]
    return frames


@torch.no_grad()
def test_a_wide_clip_with_still_frames_equals_the_reference(subject: Subject) -> None:
    frames = wide_clip()
    encoded = subject.llm.encode(subject.llm.watch(frames, fps=FPS), PROMPT)
    raw = subject.raw(videos=[frames])
    assert encoded.grid == GRIDS[subject.llm.kind][1]
    assert torch.equal(encoded.input_ids, raw["input_ids"][0])
    everything = torch.arange(encoded.grid.tokens).unsqueeze(0)
    untouched = subject.llm.model(**raw).logits[0, -1]
    torch.testing.assert_close(subject.llm.first_logits(encoded, everything)[0], untouched, atol=FLOAT32, rtol=0)
    keep = random_keep(encoded.grid.tokens, 0.2, group=1)
    expected = reference_logits(subject.llm, raw, hidden_columns(encoded, keep[0]), [])
    torch.testing.assert_close(subject.llm.first_logits(encoded, keep)[0], expected, atol=FLOAT32, rtol=0)


def test_kernels_agree(subject: Subject) -> None:
    plain = load_video_llm(ModelConfig(path=str(subject.folder), device="cpu", attention="eager"))
    assert plain.model.config._attn_implementation == "eager"
    keep = random_keep(subject.tokens, 0.2, group=2)
    encoded = plain.encode(plain.watch(subject.frames, fps=FPS), PROMPT)
    expected = subject.llm.first_logits(subject.encoded, keep)
    torch.testing.assert_close(plain.first_logits(encoded, keep), expected, atol=FLOAT32, rtol=0)
    assert plain.answer(encoded, keep, 4).tokens == subject.llm.answer(subject.encoded, keep, 4).tokens


def test_nothing_of_an_earlier_prompt_is_left_in_the_model(subject: Subject) -> None:
    """Qwen's models store the offset between columns and positions of the last prompt."""
    keep = random_keep(subject.tokens, 0.2, group=2)
    before = subject.llm.answer(subject.encoded, keep, 6).tokens
    other = subject.raw([turn("where is the red square?")], [wide_clip()])
    subject.llm.model.generate(**other, max_new_tokens=3)
    assert subject.llm.answer(subject.encoded, keep, 6).tokens == before


def only(*families: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("subject", families, indirect=True)


@torch.no_grad()
@only(*sorted(set(BUILDERS) - {"qwen3_vl"}))
def test_a_single_frame_equals_the_untouched_model(subject: Subject) -> None:
    frames = random_frames(4, count=1)
    encoded = subject.llm.encode(subject.llm.watch(frames, fps=FPS), PROMPT)
    assert encoded.grid.frames == 1
    everything = torch.arange(encoded.grid.tokens).unsqueeze(0)
    expected = subject.llm.model(**subject.raw(videos=[frames])).logits[:, -1]
    torch.testing.assert_close(subject.llm.first_logits(encoded, everything), expected, atol=FLOAT32, rtol=0)


@only("qwen3_vl")
def test_a_single_frame_is_given_twice_to_a_processor_that_refuses_it(subject: Subject) -> None:
    frame = random_frames(4, count=1)
    clip = subject.llm.watch(frame, fps=FPS)
    assert torch.equal(clip.features, subject.llm.watch(frame.repeat(2, axis=0), fps=FPS).features)
    assert clip.grid.frames == 1
    assert clip.placeholder.startswith("<0.0 seconds>")


@only("qwen2_5_vl", "qwen3_vl", "video_llama_3")
def test_a_clip_that_the_processor_refuses_is_a_bad_item(subject: Subject) -> None:
    with pytest.raises(BadItem, match=r"refuses 2 frames of 2000x8 pixels .*aspect ratio.*crop"):
        subject.llm.watch(np.zeros((2, 8, 2000, 3), np.uint8))


def test_qwens_video_limits_replace_the_image_limits_that_its_repositories_state() -> None:
    model, processor = BUILDERS["qwen2_5_vl"](8)
    published = {"min_pixels": 3136, "max_pixels": 12_845_056}  # Qwen/Qwen2.5-VL-7B-Instruct
    processor.image_processor = hf.Qwen2VLImageProcessor(**published)
    processor.video_processor = hf.Qwen2VLVideoProcessor(**published)
    llm = Qwen25VL(model, processor, ModelConfig())
    inputs, _ = llm.preprocess(np.zeros((2, 1080, 1920, 3), np.uint8), fps=1.0)
    assert inputs["video_grid_thw"].tolist() == [[1, 40, 72]]  # 720 tokens where 2,691 would be
    chosen = llm.encoding_key
    processor.video_processor = hf.Qwen2VLVideoProcessor(min_pixels=3136, max_pixels=28 * 28 * 64)
    inputs, _ = llm.preprocess(np.zeros((2, 1080, 1920, 3), np.uint8), fps=1.0)
    assert inputs["video_grid_thw"].prod() <= 4 * 64  # limits of its own stay
    del llm.encoding_key
    assert llm.encoding_key != chosen
