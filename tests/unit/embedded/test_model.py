from pathlib import Path

import numpy as np
import pytest
import torch

from cacovid.answering.prompting import format_prompt
from cacovid.data.table import read_questions
from cacovid.data.video import read_frames
from cacovid.embedded.build import BuildConfig, build
from cacovid.embedded.clips import draw_clip
from cacovid.embedded.dataset import write_dataset
from cacovid.embedded.measure import chat_prompt
from cacovid.embedded.model import new_model, pixels
from cacovid.embedded.splits import DEVELOPMENT
from cacovid.embedded.train_language import LanguageTraining
from cacovid.embedded.train_tower import TowerTraining, video_features
from cacovid.errors import UserError
from cacovid.methods.baselines.divprune import max_min_diverse
from cacovid.methods.selection import budget, spread_evenly
from cacovid.models.loading import resolve_path

SHIPPED = resolve_path("embedded")


def load(folder):
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def processor():
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(SHIPPED)


@pytest.fixture(scope="module")
def model():
    return load(SHIPPED)


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write_dataset(folder, DEVELOPMENT[:20])
    return read_questions(folder / "questions.parquet")


def test_shipped_model_is_an_ordinary_small_llava_onevision(model):
    assert type(model).__name__ == "LlavaOnevisionForConditionalGeneration"
    size = sum(path.stat().st_size for path in Path(SHIPPED).iterdir())
    assert size < 8_000_000
    assert sum(parameter.numel() for parameter in model.parameters()) == 710_208


def test_processor_gives_the_tower_the_training_pixels(processor):
    frames = draw_clip(DEVELOPMENT[0]).frames
    inputs = processor(text=[chat_prompt(processor, "what")], videos=[frames], return_tensors="pt")
    torch.testing.assert_close(inputs["pixel_values_videos"][0], pixels(torch.from_numpy(frames)), atol=1e-5, rtol=0)
    assert int((inputs["input_ids"] == processor.video_token_id).sum()) == 8 * 36 + 1


@torch.no_grad()
def test_shipped_model_answers_from_decoded_files(model, processor, questions):
    right = 0
    for item in questions:
        frames = read_frames(item.video, 8).frames
        prompt = chat_prompt(processor, format_prompt(item))
        inputs = processor(text=[prompt], videos=[frames], return_tensors="pt")
        token = model(**inputs).logits[0, -1].argmax()
        right += processor.tokenizer.decode([int(token)]) == item.answer
    assert len(questions) == 40
    assert right >= 38


@torch.no_grad()
def test_generated_answer_is_the_letter_alone(model, processor, questions):
    item = questions[0]
    frames = read_frames(item.video, 8).frames
    inputs = processor(text=[chat_prompt(processor, format_prompt(item))], videos=[frames], return_tensors="pt")
    new = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
    assert processor.tokenizer.convert_ids_to_tokens(new) == [item.answer, "<|im_end|>"]


def test_other_clip_lengths_and_sizes_are_accepted(model, processor):
    frames = np.zeros((3, 120, 160, 3), dtype=np.uint8)
    inputs = processor(text=[chat_prompt(processor, "what")], videos=[frames], return_tensors="pt")
    assert inputs["pixel_values_videos"].shape == (1, 3, 3, 96, 96)
    assert model(**inputs).logits.shape[1] == inputs["input_ids"].shape[1]


def test_new_models_depend_on_the_seed_alone():
    torch.manual_seed(5)
    first, again, other = new_model(0).state_dict(), new_model(0).state_dict(), new_model(1).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


TINY = BuildConfig(
    clips=4,
    tower=TowerTraining(steps=2, frames=4),
    finish_clips=3,
    language=LanguageTraining(steps=2, clips=2, questions=2),
    finish=LanguageTraining(steps=2, clips=2, questions=2, easy=0.0),
    held_out_clips=2,
)


def test_build_writes_a_loadable_model_and_reports_its_accuracy(tmp_path):
    stages = []
    report = build(tmp_path, 3, TINY, progress=lambda stage, *rest: stages.append(stage))
    assert stages == ["tower", "language", "finish"]
    assert report.held_out_questions == 4
    assert 0 <= report.accuracy_decoded <= 1
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "build.json"} <= names
    assert "tower.safetensors" not in names
    assert load(tmp_path).config.model_type == "llava_onevision"
    with pytest.raises(UserError, match="already holds a model"):
        build(tmp_path, 3, TINY)


def test_interrupted_build_goes_on_after_the_tower_with_the_same_result(tmp_path):
    class InterruptedError(Exception):
        pass

    def interrupt(stage, *rest):
        if stage == "language":
            raise InterruptedError

    with pytest.raises(InterruptedError):
        build(tmp_path / "resumed", 3, TINY, progress=interrupt)
    stages = []
    build(tmp_path / "resumed", 3, TINY, progress=lambda stage, *rest: stages.append(stage))
    assert stages == ["language", "finish"]
    build(tmp_path / "whole", 3, TINY)
    weights = [load(tmp_path / name).state_dict() for name in ("resumed", "whole")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@torch.no_grad()
@pytest.mark.parametrize(("share", "uniform_misses", "diverse_misses"), [(0.05, 0.8, 0.4), (0.02, 0.9, 0.6)])
def test_few_tokens_chosen_without_the_question_miss_most_needles(model, share, uniform_misses, diverse_misses):
    missed = {"uniform": [], "diverse": []}
    for seed in DEVELOPMENT[:20]:
        clip = draw_clip(seed)
        features = video_features(model, torch.from_numpy(clip.frames)[None])[0]
        count = budget(share, len(features))
        chosen = {"uniform": spread_evenly(count, len(features)), "diverse": max_min_diverse(features, count)}
        for name, kept in chosen.items():
            shown = set(kept.tolist())
            missed[name] += [shown.isdisjoint(one.tokens) for one in clip.objects if one.is_needle]
    assert np.mean(missed["uniform"]) > uniform_misses
    assert np.mean(missed["diverse"]) > diverse_misses
