"""Every importer on made rows of its collection, against golden files; what is refused, and that nothing is dropped."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cacovid.data.importers.options import letter_of, split_off, stripped
from cacovid.data.importers.raw import Rejected, raw_rows
from cacovid.data.importers.registry import IMPORTERS, importer_of
from cacovid.data.importers.run import import_questions, rejected_file
from cacovid.data.table import read_questions
from cacovid.errors import UserError

HERE = Path(__file__).parent
CASES = sorted(folder.name for folder in (HERE / "fixtures").iterdir())


def kind_of(case: str) -> str:
    return next(kind for kind in sorted(IMPORTERS, key=len, reverse=True) if case.startswith(kind))


def collection(case: str, folder: Path) -> Path:
    """A copy of the made files of ``case``; ``x.parquet.json`` becomes Parquet."""
    copy = Path(shutil.copytree(HERE / "fixtures" / case, folder / case))
    for file in copy.glob("*.parquet.json"):
        pq.write_table(pa.Table.from_pylist(json.loads(file.read_text())), file.with_suffix(""))
        file.unlink()
    return copy


def imported(case: str, folder: Path) -> dict[str, object]:
    source, out = collection(case, folder), folder / "table.parquet"
    summary = import_questions(kind_of(case), source, out, folder / "videos")
    questions = [asdict(item) for item in read_questions(out)]
    for question in questions:
        question["video"] = Path(question["video"]).relative_to(folder).as_posix()
    rejected = [json.loads(line) for line in rejected_file(out).read_text().splitlines()]
    assert summary.questions == len(questions)
    assert summary.rejected.total() == len(rejected)
    return {"questions": questions, "rejected": [{n: row[n] for n in row if n != "values"} for row in rejected]}


@pytest.mark.parametrize("case", CASES)
def test_rows_become_what_the_golden_file_says(case: str, tmp_path: Path) -> None:
    found = json.loads(json.dumps(imported(case, tmp_path)))
    assert found == json.loads((HERE / "golden" / f"{case}.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_every_row_is_imported_or_listed_with_its_reason(case: str, tmp_path: Path) -> None:
    source = collection(case, tmp_path)
    importer = importer_of(kind_of(case))(source, tmp_path)
    rows = list(importer.rows())
    summary = import_questions(kind_of(case), source, tmp_path / "t.parquet", None)
    assert summary.questions + summary.rejected.total() == len(rows)
    lines = [json.loads(line) for line in rejected_file(tmp_path / "t.parquet").read_text().splitlines()]
    assert all(line["reason"] and line["values"] for line in lines)


@pytest.mark.parametrize("case", CASES)
def test_the_files_of_another_collection_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    source, own = collection(case, tmp_path), kind_of(case)
    for other in set(IMPORTERS) - {own}:
        with pytest.raises(
            UserError, match=rf"is not {importer_of(other).title}: its rows hold .*; needed are"
        ) as error:
            import_questions(other, source, tmp_path / "t.parquet", None)
        assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("t.*"))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.json", b'[{"video_id": "1"', "no readable JSON"),
        ("a.json", b'[{"video_id": "1"} {"video_id": "2"}]', "no readable JSON"),
        ("a.json", b'[{"video_id": "1"}]', "is not TempCompass"),
        ("a.json", b"\xff\xfe\x00", "no UTF-8"),
        ("a.json", b"[1, 2]", "entry 0 is a int, not a row"),
        ("a.json", b"[]", "it has no rows"),
        ("a.jsonl", b'{"a"', "no readable JSON"),
        ("a.parquet", b"PAR1 no parquet", "no readable Parquet"),
        ("a.csv", None, "no rows at"),
    ],
)
def test_broken_files_are_refused_in_one_line(tmp_path: Path, name: str, content: bytes | None, reason: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        import_questions("tempcompass", tmp_path / name, tmp_path / "t.parquet", None)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("t.*"))


def test_lines_arrays_and_one_value_are_read_alike(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": [1, 2]}, {"a": 2, "b": "]"}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    (tmp_path / "a.json").write_text("\ufeff " + json.dumps(rows, indent=2))
    assert (
        [r.values for r in raw_rows(tmp_path / "a.jsonl")] == [r.values for r in raw_rows(tmp_path / "a.json")] == rows
    )


@pytest.mark.parametrize("content", ['[{"a": 1}]]', '[{"a": 1},, {"a": 2}]', '[{"a": 1}, {"a": 2}', '{"a": 1}]'])
def test_what_breaks_behind_good_rows_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(UserError, match="no readable JSON"):
        list(raw_rows(tmp_path / "a.json"))


def test_videos_of_one_name_in_several_folders_are_told_apart(tmp_path: Path) -> None:
    source = collection("mlvu", tmp_path)
    for task in ("1_plotQA", "9_summary"):
        (tmp_path / "videos" / task).mkdir(parents=True)
        (tmp_path / "videos" / task / "movie101_66.mp4").touch()
    summary = import_questions("mlvu", source, tmp_path / "t.parquet", tmp_path / "videos")
    plot, story = read_questions(tmp_path / "t.parquet")
    assert (Path(plot.video).parent.name, Path(story.video).parent.name) == ("1_plotQA", "9_summary")
    assert (summary.videos, summary.missing_videos) == (2, 0)


def test_egoschema_without_its_answers_is_refused(tmp_path: Path) -> None:
    source = collection("egoschema", tmp_path)
    (source / "subset_answers.json").unlink()
    with pytest.raises(UserError, match=r"answers are not in .*: put its subset_answers.json there"):
        import_questions("egoschema", source / "questions.json", tmp_path / "t.parquet", None)


def test_letters_are_stripped_where_all_options_have_their_own() -> None:
    assert stripped(["A. x", "(B) y", "C) z"]) == ("x", "y", "z")
    assert stripped(["A. Lincoln", "B. Obama", "Washington"]) == ("A. Lincoln", "B. Obama", "Washington")
    assert stripped(["B. x", "A. y"]) == ("B. x", "A. y")
    assert stripped(["A. x"]) == ("A. x",)


def test_options_are_split_off_a_question_only_where_it_ends_in_them() -> None:
    assert split_off("What?\n\nChoices:\nA) x\nB) y") == ("What?", ("x", "y"))
    assert split_off("A. Lincoln\nwas who?") == ("A. Lincoln\nwas who?", ())
    assert split_off("Plan A: go. What?") == ("Plan A: go. What?", ())


@pytest.mark.parametrize("answer", ["B", "(B)", "B.", "b book", "B. b book", " b  Book. "])
def test_an_answer_is_a_letter_or_a_text(answer: str) -> None:
    assert letter_of(answer, ("a cup", "b book")) == "B"


@pytest.mark.parametrize("answer", ["C", "a hat", "A. b book", ""])
def test_an_answer_that_is_no_option_is_rejected(answer: str) -> None:
    with pytest.raises(Rejected):
        letter_of(answer, ("a cup", "b book"))
