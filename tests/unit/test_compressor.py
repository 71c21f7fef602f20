"""The library's front door, on a tiny random model."""

import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cacovid.compressor import Compressor, model_config_for
from cacovid.config import ModelConfig, SelectionConfig, TrainConfig
from cacovid.data.video import read_frames
from cacovid.errors import BadItem, UserError
from cacovid.models.encoded import Encoded
from cacovid.models.loading import load_video_llm
from cacovid.policy.build import policy_for
from cacovid.policy.files import PolicyMetadata
from tests.support.tiny_models import save_tiny_model
from tests.support.video_files import grey_levels, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, its untrained policy and a video."""
    made = tmp_path_factory.mktemp("compressor")
    save_tiny_model("llava_onevision", made / "model")
    config = ModelConfig(path=str(made / "model"), num_frames=4, positions="contiguous", max_new_tokens=4)
    policy_for(load_video_llm(config), TrainConfig(model=config)).save_pretrained(made / "policy")
    write_video(made / "clip.mp4", grey_levels(11), size=(160, 90))
    return made


@pytest.fixture(scope="module")
def compressor(folder: Path) -> Compressor:
    return Compressor.from_pretrained(folder / "policy")


def test_a_video_is_compressed_to_its_budget_and_answered(folder: Path, compressor: Compressor) -> None:
    clip = compressor(folder / "clip.mp4", "what is the colour?", retention=0.25, options=["red", "blue", "green"])
    assert clip.encoded.grid.tokens == 36
    assert clip.kept.tolist() == sorted(set(clip.kept.tolist()))
    assert len(clip.kept) == 9
    assert clip.kept_per_frame().sum() == 9
    assert clip.answer() in "ABC"
    assert clip.answer(all_tokens=True) in "ABC"
    assert clip.prompt_tokens(all_tokens=True) - clip.prompt_tokens() == 27
    assert clip.token_scores.shape == (36,)
    assert clip.frame_scores.shape == (4,)
    assert set(clip.kept.tolist()) == set(clip.token_scores.argsort(descending=True)[:9].tolist())


def test_the_answer_is_that_of_the_model_itself(folder: Path, compressor: Compressor) -> None:
    clip = compressor(folder / "clip.mp4", "what is the colour?", options=["red", "blue"])
    llm = compressor.video_llm
    video = read_frames(folder / "clip.mp4", 4)
    encoded = llm.encode(llm.watch(video.frames, fps=video.fps), "what is the colour?\nA. red\nB. blue")
    logits = llm.first_logits(encoded, torch.arange(36)[None])[0]
    assert clip.answer(all_tokens=True) == "AB"[int(logits[llm.option_tokens("AB")].argmax())]


def test_without_options_the_answer_is_generated(folder: Path, compressor: Compressor) -> None:
    clip = compressor(folder / "clip.mp4", "what is the colour?", retention=0.5)
    expected = compressor.video_llm.generate(clip.encoded, clip.kept[None], 6)[0]
    assert clip.answer(max_new_tokens=6) == expected


def test_everything_kept_answers_as_all_tokens_do(folder: Path, compressor: Compressor) -> None:
    clip = compressor(folder / "clip.mp4", "what is the colour?", retention=1.0)
    assert clip.kept.tolist() == list(range(36))
    assert clip.answer() == clip.answer(all_tokens=True)


def test_times_and_picture_are_given(folder: Path, compressor: Compressor) -> None:
    clip = compressor(folder / "clip.mp4", "what is the colour?")
    assert min(clip.timings.decode, clip.timings.encode, clip.timings.policy, *clip.prefill_seconds(repeats=1)) > 0
    assert clip.draw(["what is the colour?"]).width > 4 * 100
    assert clip.timings.decode > 0
    assert compressor(clip.video, "what?").timings.decode == 0


def test_both_prefills_are_warm_and_take_turns(
    folder: Path, compressor: Compressor, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = compressor(folder / "clip.mp4", "what is the colour?", retention=0.25)
    events: list[str] = []
    answer, now = clip.video_llm.first_logits, time.perf_counter

    def watched(encoded: Encoded, keep: torch.Tensor, **settings: str) -> torch.Tensor:
        events.append(f"prefill of {keep.shape[1]}")
        return answer(encoded, keep, **settings)

    def clock() -> float:
        events.append("clock")
        return now()

    monkeypatch.setattr(clip.video_llm, "first_logits", watched)
    monkeypatch.setattr("cacovid.compressor.time", SimpleNamespace(perf_counter=clock))
    assert min(clip.prefill_seconds(repeats=3)) > 0
    timed = ["clock", "prefill of 9", "clock", "clock", "prefill of 36", "clock"]
    assert events == ["prefill of 9", "prefill of 36", *timed * 3]


def test_frames_already_decoded_give_the_same_tokens(folder: Path, compressor: Compressor) -> None:
    from_file = compressor(folder / "clip.mp4", "what is the colour?")
    given = compressor(read_frames(folder / "clip.mp4", 4), "what is the colour?")
    assert torch.equal(from_file.kept, given.kept)
    assert np.array_equal(from_file.video.frames, given.video.frames)


def test_frame_count_and_positions_come_with_the_policy_and_may_be_changed(
    folder: Path, compressor: Compressor
) -> None:
    assert compressor.video_llm.config.num_frames == 4
    assert compressor.video_llm.config.positions == "contiguous"
    assert compressor(folder / "clip.mp4", "what?", num_frames=6).encoded.grid.frames == 6
    other = Compressor.from_pretrained(
        folder / "policy", str(folder / "model"), selection=SelectionConfig(rule="half-uniform")
    )
    assert not torch.equal(
        other(folder / "clip.mp4", "what?", 0.3).kept, compressor(folder / "clip.mp4", "what?", 0.3).kept
    )


def test_bad_arguments_end_in_one_line(folder: Path, compressor: Compressor, tmp_path: Path) -> None:
    clip = folder / "clip.mp4"
    with pytest.raises(UserError, match=r"retention 0 is outside \(0, 1\]"):
        compressor(clip, "what?", retention=0)
    with pytest.raises(UserError, match="question is empty"):
        compressor(clip, " ")
    with pytest.raises(UserError, match="leaves no choice"):
        compressor(clip, "what?", options=["red"])
    with pytest.raises(UserError, match="is empty: fill it"):
        compressor(clip, "what?", options=["red", ""])
    for frames in (0, 100_000):
        with pytest.raises(UserError, match=f"num_frames is {frames}: sample 1 to 4096"):
            compressor(clip, "what?", num_frames=frames)
        with pytest.raises(UserError, match=f"num_frames is {frames}"):
            model_config_for(PolicyMetadata(), "embedded", num_frames=frames)
    with pytest.raises(BadItem, match="no such video"):
        compressor(folder / "none.mp4", "what?")
    with pytest.raises(UserError, match=r"policy\.json"):
        Compressor.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="which model"):
        model_config_for(PolicyMetadata())


def test_a_policy_of_another_model_is_refused(folder: Path, tmp_path: Path) -> None:
    save_tiny_model("llava_onevision", tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="trained for the model"):
        Compressor.from_pretrained(folder / "policy", str(tmp_path / "other"))
