"""A table of questions as a task of lmms-eval."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from cacovid.data.table import read_questions, write_questions
from cacovid.harness.task import TableTask, write_task
from cacovid.records import VideoQuestion
from tests.support.video_files import grey_levels, write_video

ROW = {"id": "q", "video": "v.mp4", "question": "what?", "options": ["red", "blue"], "answer": "B"}
ROW |= {"problem_type": "multiple choice", "source": "made"}


class Loader(yaml.SafeLoader):
    """Takes ``!function`` as its text."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def test_the_written_task_shows_and_judges_the_tables_rows(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", grey_levels(2), size=(16, 16))
    item = VideoQuestion("q", "v.mp4", "what?", ("red", "blue"), "B", "multiple choice", "made")
    write_questions(tmp_path / "table.parquet", [item])
    path = write_task(tmp_path / "table.parquet", tmp_path / "tasks", name="mine", instruction="Say a letter.")
    task = yaml.load(path.read_text(), Loader)
    assert task["task"] == "mine"
    assert task["dataset_kwargs"] == {"data_files": {"test": str(tmp_path / "table.parquet")}}
    module, name = task["doc_to_text"].split(".")
    spec = importlib.util.spec_from_file_location(module, path.parent / f"{module}.py")
    functions = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(functions)
    assert getattr(functions, name)(ROW, lmms_eval_specific_kwargs={}) == "what?\nA. red\nB. blue\nSay a letter."
    read = read_questions(tmp_path / "table.parquet")[0]
    assert functions.video(ROW) == [str(tmp_path / "v.mp4")] == [read.video]
    times = {"start_time": 1.5, "end_time": None}
    assert functions.messages(ROW | {"start": 1.5, "end": None})[0]["content"] == [
        {"type": "video", "url": read.video, **times},
        {"type": "text", "text": functions.text(ROW)},
    ]
    assert functions.results(ROW, ["B"]) == {"accuracy": 1.0}


@pytest.mark.parametrize(
    ("answer", "right"),
    [("B", 1), ("b.", 1), ("B. blue", 1), ("<answer>B</answer>", 1), ("A", 0), ("Blue", 0), ("", 0), (" B ", 1)],
)
def test_letters_are_read_as_they_stand(answer: str, right: int) -> None:
    assert TableTask("", "").results(ROW, [answer]) == {"accuracy": right}


def test_other_problem_types_are_judged_by_our_rewards() -> None:
    row = ROW | {"problem_type": "numerical", "answer": "17", "options": []}
    assert TableTask("", "").results(row, ["12 + 5 = 17"]) == {"accuracy": 1.0}
    assert TableTask("", "").text(row) == "what?"
