"""Questions on disk are the questions in memory, in the same order of training."""

from dataclasses import replace
from pathlib import Path

import pytest

from cacovid.data.order import ItemOrder
from cacovid.data.stored import StoredQuestions
from cacovid.data.table import stream_questions, write_questions
from cacovid.records import VideoQuestion

FIRST = VideoQuestion(
    id="q0",
    video="/clips/a.mp4",
    question="which?",
    options=("a", "b"),
    answer="A",
    problem_type="multiple choice",
    source="x",
    evidence=(1, 2),
    other_objects=(7,),
    start=1.5,
    end=2.0,
    duration=9.0,
    group="long",
    question_type="count",
)


def made(count: int) -> list[VideoQuestion]:
    plain = VideoQuestion("", "/clips/b.mp4", "how many?", (), "4", "numerical", "x")
    return [FIRST, *(replace(plain, id=f"q{number}", video=f"/clips/{number % 7}.mp4") for number in range(1, count))]


@pytest.mark.parametrize("count", [1, 255, 256, 257, 2_500])
def test_what_is_stored_comes_back(tmp_path: Path, count: int) -> None:
    items = made(count)
    stored = StoredQuestions(iter(items), tmp_path)
    assert len(stored) == count
    assert list(stored) == items
    assert (stored[0], stored[-1], stored[:2]) == (items[0], items[-1], items[:2])
    assert [stored.by_id[item.id] for item in items[::100]] == items[::100]
    assert list(stored.by_id) == [item.id for item in items]
    assert "other" not in stored.by_id
    with pytest.raises(IndexError):
        stored[count]
    assert not list(tmp_path.iterdir())  # no leftovers, however the process ends


def test_the_order_of_training_does_not_depend_on_where_the_questions_are(tmp_path: Path) -> None:
    items = made(50)
    write_questions(tmp_path / "t.parquet", items)
    stored = StoredQuestions(stream_questions(tmp_path / "t.parquet"), tmp_path / "run")
    held, mapped = ItemOrder(items, 8, 3), ItemOrder(stored, 8, 3)
    for step in range(20):
        assert mapped.of_step(step) == held.of_step(step)
    assert [item.id for item in held.of_step(6)] == ["q7", "q2", "q40", "q17", "q31", "q18", "q33", "q1"]
    assert held.epoch_of(25) == mapped.epoch_of(25) == 4.0
