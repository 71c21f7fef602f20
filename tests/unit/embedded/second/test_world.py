"""The second world by its name: clips, questions, and every problem type's reward from what a model really answers."""

import pytest
import torch

from cacovid.answering.prompting import format_prompt
from cacovid.answering.reward import reward
from cacovid.answering.scoring import score
from cacovid.config import ModelConfig, TrainConfig
from cacovid.config_files import with_overrides
from cacovid.data.skipped import SkippedItems
from cacovid.data.video import read_frames
from cacovid.embedded.items import evaluation_items, training_items
from cacovid.embedded.model import save_model
from cacovid.embedded.second.build import first_model
from cacovid.embedded.second.questions import scene_records
from cacovid.embedded.second.scenes import GRID, draw_scene
from cacovid.embedded.splits import DEVELOPMENT, TRAIN
from cacovid.embedded.tokenizer import SECOND_VOCABULARY
from cacovid.models.loading import load_video_llm

SCENE = draw_scene(DEVELOPMENT[0])
RECORDS = scene_records(SCENE, "")


@pytest.fixture(scope="module")
def video_llm(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untrained")
    save_model(first_model(0), folder, SECOND_VOCABULARY)
    return load_video_llm(ModelConfig(path=str(folder), num_frames=64, max_new_tokens=3, device="cpu"))


@pytest.fixture(scope="module")
def features(video_llm):
    return video_llm.watch(SCENE.frames)


@pytest.mark.parametrize("item", RECORDS, ids=lambda item: item.problem_type)
def test_every_problem_type_is_rewarded_by_what_was_generated(video_llm, features, item):
    encoded = video_llm.encode(features, format_prompt(item))
    assert encoded.policy_input().grid == GRID
    keep = torch.stack([torch.tensor(item.evidence[:2]), torch.arange(2)])
    scores = score(video_llm, encoded, item, keep)
    assert len(scores.answers) == 2
    if item.problem_type == "multiple choice":
        assert [*scores.reward] == [answer == item.answer for answer in scores.answers]
    else:
        expected = torch.tensor([reward(item.problem_type, answer, item.answer) for answer in scores.answers])
        assert torch.equal(scores.reward, expected)
    assert item.problem_type == "multiple choice" or reward(item.problem_type, item.answer, item.answer) == 1


@pytest.mark.parametrize(
    ("problem_type", "answer", "worth"),
    [
        ("numerical", "<wrong>", 0),
        ("free-form", "{0} nowhere", 1 / 3),
        ("OCR", "{0} {1} xx", 2 / 3),
        ("regression", "<twice>", 0),
    ],
)
def test_wrong_answers_are_worth_less(problem_type, answer, worth):
    item = next(item for item in RECORDS if item.problem_type == problem_type)
    given = answer.format(*item.answer.split(), "")
    if answer.startswith("<"):
        given = str(2 * int(item.answer))
    assert reward(problem_type, given, item.answer) == pytest.approx(worth)


def test_training_draws_the_world_that_it_is_told(tmp_path):
    config = with_overrides(TrainConfig(), {"data.train": "embedded-2", "data.train_clips": 2, "model.num_frames": 64})
    items = training_items(config, tmp_path, SkippedItems(None, max_share=0.2))
    assert [item.question for item in items] == [
        item.question for seed in TRAIN[:2] for item in scene_records(draw_scene(seed), "")
    ]
    frames = read_frames(items[0].video, config.model.num_frames).frames
    assert abs(frames.astype(int) - draw_scene(TRAIN[0]).frames).mean() < 4


def test_evaluation_draws_the_world_that_it_is_told(tmp_path):
    skipped = SkippedItems(None, max_share=0.2)
    second = evaluation_items("embedded-2", "development", 1, tmp_path, skipped)
    assert [item.problem_type for item in second] == [item.problem_type for item in RECORDS]
    first = evaluation_items("embedded", "development", 1, tmp_path, skipped)
    assert {item.problem_type for item in first} == {"multiple choice"}
