"""A measuring actor without Ray, and how questions are shared out among actors."""

from dataclasses import replace
from pathlib import Path

import pytest

from actors.measurer import QUESTIONS, MeasuringActor, MeasuringConfig, _tasks
from actors.task import MeasureTask
from cacovid.config import DataConfig, ModelConfig
from cacovid.evaluation.measurer import Setup
from cacovid.evaluation.measuring import plan
from cacovid.evaluation.rows import FULL
from cacovid.records import VideoQuestion
from tests.support.tiny_models import save_tiny_model
from tests.support.video_files import grey_levels, write_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("measurer")
    save_tiny_model("llava_onevision", made / "model")
    write_video(made / "v.mp4", grey_levels(6), size=(64, 64))
    return made


def question(folder: Path, id: str = "q", video: str = "v.mp4") -> VideoQuestion:
    return VideoQuestion(id, str(folder / video), f"what is {id}?", ("red", "blue"), "A", "multiple choice", "made")


def actor(folder: Path, model: str = "model", video: str | None = None) -> MeasuringActor:
    config = ModelConfig(path=str(folder / model), num_frames=4, dtype="float32")
    setup = Setup(config, DataConfig(), folder / "cache", ("uniform",), {}, None, (0.5,), 0)
    return MeasuringActor(MeasuringConfig(setup, 1, video), 0)


def test_questions_about_one_clip_go_to_one_actor_a_few_at_a_time(folder: Path) -> None:
    many = [question(folder, f"a{number}") for number in range(QUESTIONS + 1)]
    items = [*many, question(folder, "b", "w.mp4"), replace(question(folder, "c", "w.mp4"), start=1.0)]
    asked = plan(items, swapped=True)
    tasks = _tasks(asked)
    assert [[item.id for item in task.items] for task in tasks] == [
        [item.id for item in many[:QUESTIONS]],
        [many[-1].id],
        ["b"],
        ["c"],
    ]
    assert [task.asked[item.id] for task in tasks for item in task.items] == asked


def test_an_actor_measures_and_sets_aside_and_never_raises(folder: Path) -> None:
    measuring = actor(folder, video=str(folder / "v.mp4"))
    assert measuring.load() is None
    items = (question(folder), replace(question(folder, "bad"), answer="Z"))
    asked = {each.item.id: each for each in plan(items)}
    result, *apart = measuring.sample_apart(MeasureTask(items, asked))
    assert result is not None
    assert apart == [None, None]
    good, bad = result.measured
    assert [(row.method, row.retention) for row in good.rows] == [(FULL, 1.0), ("uniform", 0.5)]
    assert "answer 'Z'" in str(bad.reason)
    failed, *_ = measuring.sample_apart(MeasureTask(items, {}))
    assert failed is not None
    assert "KeyError" in str(failed.error)


def test_an_actor_says_why_it_cannot_load(folder: Path) -> None:
    assert "put the questions' videos where every node sees them" in str(actor(folder, video="gone.mp4").load())
    assert "UserError" in str(actor(folder, model="none").load())
