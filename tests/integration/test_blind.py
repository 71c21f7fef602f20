"""The blind test by Ray actors: what one process answers, whoever dies meanwhile."""

from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from actors.blind import QUESTIONS, ask_everywhere
from cacovid.config import ActorsConfig, ModelConfig
from cacovid.data.table import read_questions
from cacovid.errors import UserError
from cacovid.evaluation.blind import ask
from cacovid.models.loading import load_video_llm

MODEL = ModelConfig()
pytestmark = pytest.mark.slow


def kill_one_actor() -> None:
    """Of this process's own cluster."""
    below = psutil.Process().children(recursive=True)
    next(process for process in below if process.name().startswith("ray::BlindActor")).kill()


def test_actors_answer_as_one_process_does_and_a_dead_one_loses_nothing(cluster: None, table: Path) -> None:
    items = read_questions(table)
    items += [replace(item, id=f"{item.id} again") for item in items * 2]
    items.append(replace(items[0], id="bad", problem_type="numerical", answer="many"))
    expected = ask(load_video_llm(MODEL), items, "")
    assert expected[-1].reward is None
    assert len(items) > 3 * QUESTIONS
    found = []
    for number, part in enumerate(ask_everywhere(items, MODEL, "", ActorsConfig(count=2))):
        found += part
        if number == 0:
            kill_one_actor()
    assert sorted(found) == sorted(expected)


def test_a_model_that_cannot_be_loaded_is_the_users_mistake(cluster: None, table: Path, tmp_path: Path) -> None:
    wrong = ModelConfig(path=str(tmp_path))
    with pytest.raises(UserError) as error:
        list(ask_everywhere(read_questions(table), wrong, "", ActorsConfig(count=1)))
    assert "\n" not in str(error.value)
