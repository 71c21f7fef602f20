"""Numerical proof of the adapters: every family, tiny random models, against the untouched model.

Shape legend: G combinations, k retained of N video tokens, L prompt columns, V vocabulary.
"""

import numpy as np
import pytest
import torch

from cacovid.config import ModelConfig, PolicyConfig, TrainConfig
from cacovid.errors import BadItem, UserError
from cacovid.models.encoded import VideoFeatures
from cacovid.models.loading import load_video_llm
from cacovid.policy.batch import collate
from cacovid.policy.build import policy_for
from cacovid.records import TokenGrid
from tests.support.reference_model import (
    FLOAT32,
    FPS,
    FRAMES,
    GRIDS,
    PROMPT,
    Subject,
    greedy_without_cache,
    hidden_columns,
    random_frames,
    random_keep,
    reference_logits,
    tiny_subject,
    turn,
)
from tests.support.tiny_models import BUILDERS, save_tiny_model

# The same in bfloat16 (8 significant bits), relative to the largest logit; 0.009 was seen.
BFLOAT16_RELATIVE = 0.02


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return tiny_subject(request.param, tmp_path_factory.mktemp(request.param))


@torch.no_grad()
def test_prompt_is_the_processors_own(subject: Subject) -> None:
    assert torch.equal(subject.encoded.input_ids, subject.raw()["input_ids"][0])
    assert subject.encoded.grid == GRIDS[subject.llm.kind][0]
    assert subject.encoded.features.shape == (subject.tokens, subject.llm.hidden_size)


@torch.no_grad()
def test_keep_all_equals_the_untouched_model(subject: Subject) -> None:
    raw = subject.raw()
    everything = torch.arange(subject.tokens).unsqueeze(0)
    expected = subject.llm.model(**raw).logits[0, -1]
    torch.testing.assert_close(subject.llm.first_logits(subject.encoded, everything)[0], expected, atol=FLOAT32, rtol=0)
    expected_ids = subject.llm.model.generate(**raw, max_new_tokens=24, do_sample=False)
    answer = subject.llm.answer(subject.encoded, everything, max_new_tokens=24)
    assert answer.tokens[0] == tuple(expected_ids[0, raw["input_ids"].shape[1] :].tolist())


@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
def test_subsets_equal_the_hidden_columns_reference(subject: Subject, share: float) -> None:
    keep = random_keep(subject.tokens, share, group=4)
    raw = subject.raw()
    logits = subject.llm.first_logits(subject.encoded, keep)
    for row, actual in zip(keep, logits, strict=True):
        expected = reference_logits(subject.llm, raw, hidden_columns(subject.encoded, row), [])
        torch.testing.assert_close(actual, expected, atol=FLOAT32, rtol=0)
    assert (logits[0] - logits[1]).abs().max() > 100 * FLOAT32, "the model does not see which tokens are kept"


def test_generation_goes_on_for_20_tokens_like_the_reference_with_and_without_cache(subject: Subject) -> None:
    keep = random_keep(subject.tokens, 0.1, group=2)
    raw = subject.raw()
    answers = subject.llm.answer(subject.encoded, keep, max_new_tokens=20)
    uncached = greedy_without_cache(subject.llm, subject.llm.pack(subject.encoded, keep), 20)
    assert answers.finished == (False, False)
    for row, tokens, slow in zip(keep, answers.tokens, uncached, strict=True):
        hidden = hidden_columns(subject.encoded, row)
        expected: list[int] = []
        for _ in range(20):
            expected.append(int(reference_logits(subject.llm, raw, hidden, expected).argmax()))
        assert list(tokens) == expected
        assert slow == expected


def test_mrope_keeps_its_text_row_without_gaps(subject: Subject) -> None:
    """The kernels that take gaps for borders of packed sequences (flash attention) read that row alone."""
    packed = subject.llm.pack(subject.encoded, random_keep(subject.tokens, 0.1, group=2))["position_ids"]
    gapped = packed[0] if packed.ndim == 2 else packed[1:, 0].amax(dim=0)
    assert gapped.diff().max() > 1
    if packed.ndim == 3:
        assert torch.equal(packed[0], torch.arange(packed.shape[2]).expand(2, -1))


def test_no_forward_pass_reads_more_than_the_allowed_tokens(subject: Subject) -> None:
    keep = random_keep(subject.tokens, 0.1, group=5)
    length = subject.encoded.text_length + keep.shape[1]
    llm = load_video_llm(ModelConfig(path=str(subject.folder), device="cpu", max_batch_tokens=2 * length + 1))
    sizes: list[int] = []
    llm.model.register_forward_pre_hook(lambda _, __, given: sizes.append(len(given["input_ids"])), with_kwargs=True)
    llm.first_logits(subject.encoded, keep)
    assert sizes == [2, 2, 1]
    sizes.clear()
    llm.answer(subject.encoded, keep, max_new_tokens=1)  # its tokens are counted too
    assert sizes == [1, 1, 1, 1, 1]


def test_batches_are_split_without_changing_the_answers(subject: Subject) -> None:
    keep = random_keep(subject.tokens, 0.1, group=5)
    whole = subject.llm.first_logits(subject.encoded, keep)
    small = ModelConfig(path=str(subject.folder), device="cpu", max_batch_tokens=1)
    narrow = load_video_llm(small)
    torch.testing.assert_close(narrow.first_logits(subject.encoded, keep), whole, atol=FLOAT32, rtol=0)
    assert narrow.answer(subject.encoded, keep, 3).tokens == subject.llm.answer(subject.encoded, keep, 3).tokens


def test_bfloat16_stays_within_its_tolerance(subject: Subject) -> None:
    llm = load_video_llm(ModelConfig(path=str(subject.folder), device="cpu", dtype="bfloat16"))
    encoded = llm.encode(llm.watch(subject.frames, fps=FPS), PROMPT)
    keep = random_keep(subject.tokens, 0.1, group=2)
    logits = llm.first_logits(encoded, keep).float()
    for row, actual in zip(keep, logits, strict=True):
        expected = reference_logits(llm, subject.raw(), hidden_columns(encoded, row), [])
        assert (actual - expected).abs().max() <= BFLOAT16_RELATIVE * expected.abs().max()


def test_two_videos_and_text_turns_equal_the_reference(subject: Subject) -> None:
    other = random_frames(1)
    messages = [
        turn("what is the shape?"),
        {"role": "assistant", "content": [{"type": "text", "text": "A circle."}]},
        turn("after the red object?", video=False),
        {"role": "assistant", "content": [{"type": "text", "text": "yellow"}]},
        turn(),
    ]
    clips = [subject.clip, subject.llm.watch(other, fps=FPS)]
    encoded = subject.llm.encode_chat(messages, clips)
    raw = subject.raw(messages, [subject.frames, other])
    assert torch.equal(encoded.input_ids, raw["input_ids"][0])
    assert encoded.grid.tokens == 2 * subject.tokens
    for share in (1.0, 0.1):
        keep = random_keep(encoded.grid.tokens, share, group=1)
        expected = reference_logits(subject.llm, raw, hidden_columns(encoded, keep[0]), [])
        actual = subject.llm.first_logits(encoded, keep)[0]
        torch.testing.assert_close(actual, expected, atol=FLOAT32, rtol=0)


def test_a_chat_without_video_equals_the_untouched_model(subject: Subject) -> None:
    encoded = subject.llm.encode_chat([turn(video=False)], [])
    nothing = torch.empty(2, 0, dtype=torch.long)
    with torch.no_grad():
        expected = subject.llm.model(**subject.raw([turn(video=False)], [])).logits[0, -1]
    logits = subject.llm.first_logits(encoded, nothing)
    torch.testing.assert_close(logits, expected.expand(2, -1), atol=FLOAT32, rtol=0)
    assert len(subject.llm.generate(encoded, nothing, max_new_tokens=3)) == 2


def test_contiguous_positions_equal_a_prompt_without_the_dropped_columns(subject: Subject) -> None:
    keep = random_keep(subject.tokens, 0.1, group=2)
    llm = load_video_llm(ModelConfig(path=str(subject.folder), device="cpu", positions="contiguous"))
    packed = llm.pack(subject.encoded, keep)
    length = packed["input_ids"].shape[1]
    assert torch.equal(packed["position_ids"].reshape(-1, length)[0], torch.arange(length))
    del packed["position_ids"]  # the model numbers the columns itself
    with torch.no_grad():
        expected = subject.llm.model(**packed).logits[:, -1]
    expected_ids = subject.llm.model.generate(**packed, max_new_tokens=8)[:, length:].tolist()
    assert [list(row) for row in llm.answer(subject.encoded, keep, 8).tokens] == expected_ids
    contiguous = llm.first_logits(subject.encoded, keep)
    torch.testing.assert_close(contiguous, expected, atol=FLOAT32, rtol=0)
    assert (contiguous - subject.llm.first_logits(subject.encoded, keep)).abs().max() > 100 * FLOAT32


def test_pinned_rows_and_timestamps_survive_the_smallest_budget(subject: Subject) -> None:
    keep = torch.tensor([[0]])
    packed = subject.llm.pack(subject.encoded, keep)
    kept = (packed["input_ids"] == subject.llm.placeholder_id).sum()
    assert int(kept) == 1 + len(subject.clip.pinned_slots)
    text = subject.encoded.input_ids[subject.encoded.text_columns]
    remaining = packed["input_ids"][0].tolist()
    assert all(remaining.count(token) >= text.tolist().count(token) for token in set(text.tolist()))
    assert packed["input_ids"].shape[1] == subject.encoded.text_length + 1


def test_tokens_lie_row_by_row_in_the_grid(subject: Subject) -> None:
    """Painting a frame's lower left corner changes that corner's token more than those of other corners."""
    grid = subject.clip.grid
    change = torch.zeros(grid)
    for seed in range(4):
        frames = random_frames(seed)
        before = subject.llm.watch(frames, fps=FPS).features
        frames[-2:, 32:, :16] = 255 - frames[-2:, 32:, :16]
        change += (subject.llm.watch(frames, fps=FPS).features - before).norm(dim=1).reshape(grid)
    corners = change[:, [0, 0, -1, -1], [0, -1, 0, -1]].sum(dim=0)  # upper left, upper right, lower left, lower right
    assert int(corners.argmax()) == 2
    painted_steps = 2 * grid.frames // FRAMES
    assert change[:-painted_steps].sum() < change[-painted_steps:].sum()


def test_an_odd_number_of_frames_fills_the_last_temporal_step(subject: Subject) -> None:
    grid = subject.llm.watch(random_frames(2, count=3), fps=FPS).grid
    expected = GRIDS[subject.llm.kind][0]
    assert grid == expected._replace(frames=-(-3 * expected.frames // FRAMES))


def test_known_features_skip_pixels_and_tower(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("pixels were looked at again")

    monkeypatch.setattr(type(subject.llm), "_run_tower", forbidden)
    monkeypatch.setattr(type(subject.llm.processor.video_processor), "__call__", forbidden)
    stored = VideoFeatures.from_parts(subject.clip.tensors(), subject.clip.metadata())
    encoded = subject.llm.encode(stored, PROMPT)
    assert torch.equal(encoded.position_ids, subject.encoded.position_ids)
    assert torch.equal(encoded.features, subject.encoded.features)
    assert all(map(torch.equal, encoded.deepstack, subject.encoded.deepstack))


def test_policy_input_covers_every_prompt_column_once(subject: Subject) -> None:
    inputs = subject.encoded.policy_input()
    columns = torch.cat([inputs.video_columns, inputs.text_columns]).sort().values
    assert torch.equal(columns, torch.arange(subject.encoded.length))
    raw, model = subject.raw(), subject.llm.model.model
    plain = torch.arange(subject.encoded.length)[None]
    rope = model.get_rope_index(**raw)[0][:, 0] if hasattr(model, "get_rope_index") else plain
    assert torch.equal(inputs.position_ids, rope)
    for slot, row in zip(subject.clip.pinned_slots, subject.clip.pinned, strict=True):
        column = int((subject.encoded.input_ids == subject.llm.placeholder_id).nonzero()[slot])
        assert torch.equal(inputs.text[inputs.text_columns == column][0], row)


@pytest.mark.parametrize("kind", ["late", "paper"])
def test_policies_learn_on_every_family(subject: Subject, kind: str) -> None:
    policy = policy_for(subject.llm, TrainConfig(policy=PolicyConfig(kind=kind)))
    with torch.inference_mode():  # as in a rollout; the features must still be fit for learning
        encoded = subject.llm.encode(subject.llm.watch(subject.frames, fps=FPS), PROMPT)
    output = policy(collate([encoded.policy_input()]))
    assert output.token_logits.shape == (1, subject.tokens, 2)
    assert output.frame_logits.shape == (1, subject.encoded.grid.frames, 2)
    output.token_logits.sum().backward()
    assert all(not weight.requires_grad for weight in subject.llm.model.parameters())


def test_fingerprint_survives_reloading_and_tells_weights_and_settings_apart(
    subject: Subject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    again = load_video_llm(ModelConfig(path=str(subject.folder), device="cpu", dtype="bfloat16", attention="eager"))
    assert again.fingerprint == subject.llm.fingerprint
    assert again.encoding_key != subject.llm.encoding_key  # bfloat16 features are others
    folder = save_tiny_model(subject.llm.kind, tmp_path_factory.mktemp("other"), seed=1)
    assert load_video_llm(ModelConfig(path=str(folder), device="cpu")).fingerprint != subject.llm.fingerprint


def test_option_tokens_are_the_letters(subject: Subject) -> None:
    tokens = subject.llm.option_tokens("ABCD")
    assert subject.llm.processor.tokenizer.convert_ids_to_tokens(tokens) == list("ABCD")


def test_own_placeholders_in_the_question_are_refused(subject: Subject) -> None:
    inner = subject.llm.processor.tokenizer.decode([subject.llm.placeholder_id])
    for token in {inner, subject.llm.processor.video_token}:
        with pytest.raises(BadItem, match="remove"):
            subject.llm.encode(subject.clip, f"what is {token}?")


def test_features_of_another_model_are_refused(subject: Subject) -> None:
    foreign = VideoFeatures(torch.zeros(4, 7), TokenGrid(1, 2, 2), "x", torch.zeros(0, 7))
    with pytest.raises(UserError, match="width 7"):
        subject.llm.encode(foreign, PROMPT)


def test_a_cut_answer_is_reported(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    keep = random_keep(subject.tokens, 0.1, group=2)
    subject.llm.generate(subject.encoded, keep, max_new_tokens=2)
    assert "2 of 2 answers were cut at model.max_new_tokens=2" in caplog.text


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 48, 48), np.uint8), np.zeros((2, 48, 48, 3)), np.zeros((0, 48, 48, 3), np.uint8)]
)
def test_unusable_frames_are_refused(subject: Subject, frames: np.ndarray) -> None:
    with pytest.raises(BadItem, match="uint8"):
        subject.llm.watch(frames)
