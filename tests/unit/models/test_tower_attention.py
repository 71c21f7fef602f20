"""What the tower attended to, against the weights of the model's own eager attention, for every family."""

from pathlib import Path

import pytest
import torch

from cacovid.models.encoded import VideoFeatures
from tests.support.reference_model import FPS, Subject, tiny_subject
from tests.support.tiny_models import BUILDERS


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return tiny_subject(request.param, tmp_path_factory.mktemp(request.param))


def test_recording_changes_no_feature_and_gives_every_token_its_share(subject: Subject) -> None:
    clip = subject.llm.watch(subject.frames, fps=FPS, tower_attention=True)
    assert torch.equal(clip.features, subject.clip.features)
    assert clip.tower is not None
    assert clip.tower.received.shape == (subject.tokens,)
    assert clip.tower.keys.shape[0] == subject.tokens
    assert subject.clip.tower is None
    # Weights of a query sum to 1, so that the patches of a frame receive 1 in all; class tokens keep theirs,
    # and pooling by an uneven factor (5 patches to 3 tokens) does not keep sums.
    frames = clip.tower.received.view(clip.grid.frames, -1)
    patches = {"llava_onevision": 25, "llava_next_video": 36, "internvl": 36, "smolvlm": 36}.get(
        subject.llm.kind, 4 * clip.grid.per_frame
    )
    sums = frames.mean(dim=1) * patches
    assert bool((sums > 0.5).all())
    assert bool((sums < 1.3).all())
    if subject.llm.kind in ("smolvlm", "qwen2_5_vl", "qwen3_vl", "video_llama_3"):
        torch.testing.assert_close(sums, torch.ones(clip.grid.frames))


def test_the_recording_survives_storage_and_becomes_part_of_the_question(subject: Subject) -> None:
    clip = subject.llm.watch(subject.frames, fps=FPS, tower_attention=True)
    again = VideoFeatures.from_parts(clip.tensors(), clip.metadata()).to("cpu", torch.bfloat16)
    assert clip.tower is not None
    assert again.tower is not None
    assert torch.equal(again.tower.received, clip.tower.received)
    encoded = subject.llm.encode_chat(
        [{"role": "user", "content": [{"type": "video"}, {"type": "video"}, {"type": "text", "text": "what"}]}],
        [clip, clip],
    )
    assert encoded.tower is not None
    assert torch.equal(encoded.tower.keys, torch.cat([clip.tower.keys] * 2))
    assert subject.encoded.tower is None


def test_tokens_of_a_spot_that_the_tower_looks_at_receive_most(subject: Subject) -> None:
    """Order: the recorded attention of each frame is that of the frame alone, whatever windows and chunks did."""
    whole = subject.llm.watch(subject.frames, fps=FPS, tower_attention=True)
    half = subject.llm.watch(subject.frames[4:], fps=FPS, tower_attention=True)
    assert whole.tower is not None
    assert half.tower is not None
    if half.grid.rows == whole.grid.rows:  # Qwen3-VL spreads its pixels over fewer frames
        torch.testing.assert_close(whole.tower.received[-half.grid.tokens :], half.tower.received)


def test_tokens_lie_as_in_the_grid(subject: Subject) -> None:
    """A painted cell changes its own token's key as much as its own features: both at the same place."""
    clip = subject.llm.watch(subject.frames, fps=FPS, tower_attention=True)
    for row, column in ((0, 1), (1, 2), (2, 0)):
        frames = subject.frames.copy()
        height, width = 48 // clip.grid.rows, 48 // clip.grid.columns
        frames[:, row * height : (row + 1) * height, column * width : (column + 1) * width] = 255
        painted = subject.llm.watch(frames, fps=FPS, tower_attention=True)
        assert clip.tower is not None
        assert painted.tower is not None
        change = (painted.tower.keys - clip.tower.keys).norm(dim=1).view(clip.grid.frames, -1).mean(dim=0)
        assert int(change.argmax()) == row * clip.grid.columns + column


def test_weights_are_those_of_eager_attention(tmp_path: Path) -> None:
    subject = tiny_subject("smolvlm", tmp_path)
    clip = subject.llm.watch(subject.frames, fps=FPS, tower_attention=True)
    tower = subject.llm.model.model.vision_model
    tower.set_attn_implementation("eager")
    inputs, _ = subject.llm.preprocess(subject.frames, FPS)
    output = subject.llm.model.get_image_features(pixel_values=inputs["pixel_values"], output_attentions=True)
    received = output.attentions[-1].mean(dim=(1, 2)).view(8, 3, 2, 3, 2).mean(dim=(2, 4)).flatten()
    assert clip.tower is not None
    torch.testing.assert_close(clip.tower.received, received)


def test_a_family_whose_tower_cannot_be_listened_to_records_nothing(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(subject.llm), "_tower", lambda _: None)
    clip = subject.llm.watch(subject.frames, fps=FPS, tower_attention=True)
    assert clip.tower is None
    assert torch.equal(clip.features, subject.clip.features)
