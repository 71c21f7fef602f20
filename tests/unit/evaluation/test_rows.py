"""Rows on disk: parts while it runs, one file in the end, nothing twice, nothing of other settings."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cacovid.errors import UserError
from cacovid.evaluation.rows import FULL, PARTS, ROWS, QuestionRow, RowStore

SETTINGS = {"model": "m", "ratios": [0.1]}


def row(question: str, method: str = "uniform") -> QuestionRow:
    return QuestionRow(question, f"{question}.mp4", method, 0.1, 1.0, "A", None, None, 0.1, 0.1, None, compress_ms=0.5)


def rows(question: str) -> list[QuestionRow]:
    return [row(question, FULL), row(question), QuestionRow(question, "v", "fastv", 0.1, *[None] * 7)]


def flushed(folder: Path, *questions: str) -> None:
    """As a process leaves it that was killed after a part."""
    store = RowStore(folder, SETTINGS)
    for question in questions:
        store.add(rows(question))
    store.flush()


def test_what_a_killed_evaluation_wrote_is_known_and_ends_in_one_file(tmp_path: Path) -> None:
    flushed(tmp_path, "b")
    flushed(tmp_path, "d", "a")
    (tmp_path / PARTS / "000002.parquet.part").write_bytes(b"half")
    store = RowStore(tmp_path, SETTINGS)
    assert store.known == {"a", "b", "d"}
    store.add(rows("c"))
    assert sorted({each.question for each in store.rows()}) == ["a", "b", "c", "d"]
    store.finish(["a", "b", "c", "d", "e"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [ROWS]
    assert pq.read_table(tmp_path / ROWS).column("question").to_pylist() == [id for id in "abcd" for _ in range(3)]
    again = RowStore(tmp_path, SETTINGS)
    assert again.known == {"a", "b", "c", "d"}
    assert list(again.rows()) == [each for question in "abcd" for each in rows(question)]


def test_a_kill_between_the_whole_file_and_the_removal_of_its_parts_counts_nothing_twice(tmp_path: Path) -> None:
    flushed(tmp_path, "a", "b")
    part = next((tmp_path / PARTS).iterdir())
    (tmp_path / ROWS).write_bytes(part.read_bytes())
    store = RowStore(tmp_path, SETTINGS)
    assert len(list(store.rows())) == 6
    store.finish(["a", "b"])
    assert len(pq.read_table(tmp_path / ROWS)) == 6


def test_parts_are_written_as_time_goes_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("cacovid.evaluation.rows.time.monotonic", lambda: now)
    store = RowStore(tmp_path, SETTINGS)
    for number in range(100):
        now += 0.5
        store.add(rows(str(number)))
    assert 20 <= len(list((tmp_path / PARTS).iterdir())) <= 50
    assert len(store._waiting) <= 2 * 3 * 2


def test_rows_of_other_settings_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    flushed(tmp_path, "a")
    with pytest.raises(UserError, match=r"in use.*another model.*--overwrite"):
        RowStore(tmp_path, {**SETTINGS, "model": "other"})
    next((tmp_path / PARTS).iterdir()).write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"cannot be read.*--overwrite"):
        RowStore(tmp_path, SETTINGS)
    assert RowStore.is_in(tmp_path)
    RowStore.clear(tmp_path)
    assert not RowStore(tmp_path, SETTINGS).known
