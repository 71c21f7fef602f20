"""Long videos in chunks: what one reads at once and what one reads part by part are the same."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cacovid.compressor import SHOWN, Compressor
from cacovid.config import ModelConfig, PolicyConfig, SelectionConfig, TrainConfig
from cacovid.data.video import read_frames, read_in_chunks, read_some
from cacovid.embedded.clips import draw_clip
from cacovid.embedded.video_writer import write_mp4
from cacovid.errors import UserError
from cacovid.models.loading import load_video_llm
from cacovid.policy.build import policy_for
from tests.support.reference_model import tiny_subject

FRAMES = 40
QUESTION, OPTIONS = "what color is the ring object?", ("red", "blue", "green", "white")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "video.mp4"
    write_mp4(path, np.concatenate([draw_clip(seed).frames for seed in range(FRAMES // 8)]))
    return path


def compressor(kind: str = "late", **policy: object) -> Compressor:
    config = TrainConfig(policy=PolicyConfig.model_validate({"kind": kind, **policy}), model=ModelConfig(device="cpu"))
    llm = load_video_llm(config.model)
    return Compressor(policy_for(llm, config), llm)


def test_frames_come_in_chunks_as_they_come_at_once(video: Path) -> None:
    whole = read_frames(video, 15)
    parts, fps = read_in_chunks(video, 15, 4)
    chunks = list(parts)
    assert [len(chunk.frames) for chunk in chunks] == [4, 4, 4, 3]
    assert np.array_equal(np.concatenate([chunk.frames for chunk in chunks]), whole.frames)
    assert sum((chunk.timestamps for chunk in chunks), ()) == whole.timestamps
    assert fps == whole.fps
    some = read_some(video, 15, [2, 9])
    assert np.array_equal(some.frames, whole.frames[[2, 9]])
    assert some.timestamps == (whole.timestamps[2], whole.timestamps[9])


@pytest.mark.parametrize("question_aware", [True, False])
@pytest.mark.parametrize("rule", ["global", "half-uniform", "frame-budgets"])
def test_chunks_keep_the_same_tokens_and_lead_to_the_same_answer(video: Path, rule: str, question_aware: bool) -> None:
    made = compressor(question_aware=question_aware)
    made.selection = SelectionConfig.model_validate({"rule": rule})
    whole = made(video, QUESTION, 0.02, options=OPTIONS, num_frames=FRAMES)
    for chunk in (1, 7, FRAMES, 2 * FRAMES):
        clip = made(video, QUESTION, 0.02, options=OPTIONS, num_frames=FRAMES, chunk_frames=chunk)
        torch.testing.assert_close(clip.token_scores, whole.token_scores, atol=1e-4, rtol=0)
        torch.testing.assert_close(clip.frame_scores, whole.frame_scores, atol=1e-4, rtol=0)
        assert clip.kept.tolist() == whole.kept.tolist()
        assert clip.encoded.grid == whole.encoded.grid
        assert torch.equal(clip.encoded.input_ids, whole.encoded.input_ids)
        packed, expected = (made.video_llm.pack(each.encoded, each.kept[None]) for each in (clip, whole))
        rows, others = (each["mm_encoder_outputs"]["video"].pooler_output for each in (packed, expected))
        torch.testing.assert_close(rows, others, atol=1e-5, rtol=0)
        assert torch.equal(packed["position_ids"], expected["position_ids"])
        assert clip.answer() == whole.answer()


def test_pictures_show_the_frames_of_which_most_is_kept(video: Path) -> None:
    clip = compressor()(video, QUESTION, 0.02, options=OPTIONS, num_frames=FRAMES, chunk_frames=8)
    assert clip.shown is not None
    assert len(clip.video.frames) == len(clip.shown) == SHOWN
    assert np.array_equal(clip.video.frames, read_frames(video, FRAMES).frames[clip.shown.numpy()])
    counts = clip.kept_per_frame()
    left_out = [count for frame, count in enumerate(counts.tolist()) if frame not in clip.shown.tolist()]
    assert max(left_out) <= counts[clip.shown].min()
    drawn = clip._scored()
    assert len(drawn.kept) == int(counts[clip.shown].sum())
    assert torch.equal(torch.bincount(drawn.kept // drawn.grid.per_frame, minlength=SHOWN), counts[clip.shown])
    assert clip.draw(["long"]).size[0] > 0
    assert len(clip.draw_scores()) == 2


def test_what_reads_a_clip_as_a_whole_refuses_chunks(video: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="policy 'paper' reads the whole prompt at once"):
        compressor("paper")(video, QUESTION, num_frames=8, chunk_frames=4)
    llm = tiny_subject("qwen2_5_vl", tmp_path).llm
    with pytest.raises(UserError, match="models of type qwen2_5_vl read a clip as a whole"):
        Compressor(policy_for(llm, TrainConfig()), llm)(video, "what is it?", num_frames=8, chunk_frames=4)
    with pytest.raises(UserError, match="chunk_frames is 4: give 1 or more, and the video as a file"):
        compressor()(read_frames(video, 8), QUESTION, chunk_frames=4)
    with pytest.raises(UserError, match="chunk_frames is 0"):
        compressor()(video, QUESTION, chunk_frames=0)
