"""What the question table accepts, refuses and sets aside."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cacovid.answering.prompting import format_prompt, option_letters
from cacovid.data.question import check_question
from cacovid.data.skipped import MIN_ITEMS, SkippedItems
from cacovid.data.table import SCHEMA, read_questions, write_questions
from cacovid.errors import BadItem, UserError
from cacovid.records import VideoQuestion

ITEM = VideoQuestion(
    id="q1",
    video="clips/a.mp4",
    question="what color is the ring?",
    options=("red", "blue", "green"),
    answer="B",
    problem_type="multiple choice",
    source="embedded",
    evidence=(3, 40),
    other_objects=(7,),
)


def columns(**changes: object) -> dict[str, object]:
    values: dict[str, object] = {
        "id": ["a", "b"],
        "video": ["a.mp4", "b.mp4"],
        "question": ["which?", "how many?"],
        "options": [["red", "blue"], []],
        "answer": ["A", "4"],
        "problem_type": ["multiple choice", "numerical"],
        "source": ["x", "x"],
    }
    return {name: value for name, value in (values | changes).items() if value is not None}


def save(folder: Path, **changes: object) -> Path:
    path = folder / "table.parquet"
    pq.write_table(pa.table(columns(**changes)), path)
    return path


def test_questions_survive_a_round_trip_and_the_folder_may_move(tmp_path: Path) -> None:
    text_item = replace(
        ITEM, id="q2", options=(), answer="4", problem_type="numerical", evidence=(), video="/elsewhere/b.mp4"
    )
    write_questions(tmp_path / "old" / "table.parquet", [ITEM, text_item])
    (tmp_path / "old").rename(tmp_path / "new")
    first, second = read_questions(tmp_path / "new" / "table.parquet")
    assert first == replace(ITEM, video=str(tmp_path / "new" / "clips" / "a.mp4"))
    assert second == text_item


def test_absolute_videos_below_the_table_are_stored_relative(tmp_path: Path) -> None:
    write_questions(tmp_path / "table.parquet", [replace(ITEM, video=str(tmp_path / "clips" / "a.mp4"))])
    assert pq.read_table(tmp_path / "table.parquet")["video"].to_pylist() == ["clips/a.mp4"]


def test_evidence_columns_are_optional_and_others_are_ignored(tmp_path: Path) -> None:
    items = read_questions(save(tmp_path, path=["x", "y"], score=[0.5, 0.1]))
    assert [item.evidence for item in items] == [(), ()]
    assert items[0].options == ("red", "blue")


def test_pandas_style_types_are_accepted(tmp_path: Path) -> None:
    path = save(
        tmp_path,
        id=pa.array(["a", "b"], pa.large_string()),
        source=pa.array(["x", "x"]).dictionary_encode(),
        evidence=pa.array([[1], []], pa.list_(pa.int64())),
        other_objects=pa.array([[], []], pa.list_(pa.null())),
    )
    assert [item.evidence for item in read_questions(path)] == [(1,), ()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"answer": None, "source": None}, "lacks the columns answer, source"),
        ({"id": [1, 2]}, "column 'id' has type int64; make it string"),
        ({"options": ["red, blue", ""]}, "column 'options' has type string; make it list<"),
        ({"options": [[1, 2], [3]]}, "column 'options' has type list<"),
        ({"evidence": [[0.5], [1.5]]}, "column 'evidence' has type list<"),
    ],
)
def test_wrong_columns_are_refused_by_name(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_questions(save(tmp_path, **changes))
    assert not isinstance(caught.value, BadItem)
    assert "\n" not in str(caught.value)


def test_no_table_and_no_parquet_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no question table"):
        read_questions(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("id,video\n1,a.mp4\n")
    with pytest.raises(UserError, match="not a readable Parquet table"):
        read_questions(tmp_path / "text.parquet")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"answer": ["C", "4"]}, "answer 'C' is no option; give a letter A-B"),
        ({"answer": ["red", "4"]}, "answer 'red' is no option"),
        ({"options": [["red"], []]}, "multiple choice with 1 options"),
        ({"problem_type": ["riddle", "numerical"]}, "problem_type is 'riddle'"),
        ({"question": [" ", "how many?"]}, "question is empty"),
        ({"options": [["red", " "], []]}, "is empty; fill it"),
        ({"video": [None, "b.mp4"]}, "video is null"),
        ({"options": [["red", None], []]}, "options holds a null"),
        ({"evidence": [[-1], []]}, "negative"),
    ],
)
def test_a_wrong_row_is_set_aside_and_the_others_are_read(
    tmp_path: Path, changes: dict[str, object], reason: str
) -> None:
    path = save(tmp_path, **changes)
    with pytest.raises(BadItem, match=reason):
        read_questions(path)
    skipped = SkippedItems(tmp_path / "skipped.jsonl")
    assert [item.id for item in read_questions(path, skipped=skipped)] == ["b"]
    (line,) = [json.loads(line) for line in skipped.path.read_text().splitlines()]
    assert line["id"] == "a"
    assert reason in line["reason"]


def test_a_numerical_answer_must_be_a_number() -> None:
    check_question(replace(ITEM, problem_type="numerical", answer="1,204.5"))
    with pytest.raises(BadItem, match="is no number"):
        check_question(replace(ITEM, problem_type="numerical", answer="many"))


def test_repeated_ids_are_bad_items_because_seeds_derive_from_them(tmp_path: Path) -> None:
    with pytest.raises(BadItem, match="occurs twice"):
        read_questions(save(tmp_path, id=["a", "a"]))


def test_a_table_without_usable_rows_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, question=["", ""])
    with pytest.raises(UserError, match="no usable question"):
        read_questions(path, skipped=SkippedItems(tmp_path / "skipped.jsonl"))


def test_every_documented_column_is_a_field_of_the_record() -> None:
    assert set(SCHEMA.names) == set(VideoQuestion.__dataclass_fields__)


def test_prompts_list_lettered_options_without_empty_lines() -> None:
    assert format_prompt(ITEM) == "what color is the ring?\nA. red\nB. blue\nC. green"
    assert format_prompt(ITEM, "Answer with the letter.").splitlines()[-1] == "Answer with the letter."
    spoken = replace(ITEM, problem_type="free-form", options=())
    assert format_prompt(spoken, "Answer with the letter.") == "what color is the ring?"


def test_options_beyond_the_alphabet_are_a_bad_item() -> None:
    assert option_letters(3) == ("A", "B", "C")
    with pytest.raises(BadItem, match="27 options"):
        option_letters(27)


def test_skipped_items_stop_the_run_when_their_share_is_too_large(tmp_path: Path) -> None:
    skipped = SkippedItems(tmp_path / "run" / "skipped.jsonl", max_share=0.2)
    skipped.add("a", "a.mp4", "missing")  # one of one, but too early to judge
    skipped.use(MIN_ITEMS - 6)
    for number in range(3):
        skipped.add(f"b{number}", "b.mp4", "missing")
    skipped.add("last", "b.mp4", "missing")
    with pytest.raises(UserError, match=r"6 of 20 items were unusable, more than the allowed share 0\.2"):
        skipped.use(0), skipped.add("over", "b.mp4", "missing")


def test_a_short_run_is_judged_at_its_end(tmp_path: Path) -> None:
    skipped = SkippedItems(tmp_path / "skipped.jsonl", max_share=0.2)
    skipped.use(3)
    skipped.finish()
    skipped.add("a", "a.mp4", "missing")
    with pytest.raises(UserError, match="1 of 4"):
        skipped.finish()


def test_resumed_runs_write_each_skipped_item_once(tmp_path: Path) -> None:
    path = tmp_path / "skipped.jsonl"
    first = SkippedItems(path)
    first.add("a", "a.mp4", "missing")
    path.write_text(path.read_text() + '{"id": "b", "vid')  # cut short by a kill
    second = SkippedItems(path)
    second.met, second.skipped = first.met, first.skipped
    second.add("a", "a.mp4", "missing")
    second.add("b", "b.mp4", "missing")
    lines = [line for line in path.read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["id"] for line in lines] == ["a", "b"]
    assert (second.met, second.skipped) == (3, 3)
