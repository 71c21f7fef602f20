"""A file is replaced whole or not at all."""

from pathlib import Path

import pytest

from cacovid.atomic import writing


def test_readers_see_the_old_contents_until_the_new_ones_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")
    with writing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def write_half(path: Path) -> None:
    with writing(path) as part:
        part.write_text("ne")
        raise RuntimeError


@pytest.mark.parametrize("before", ["old", None])
def test_a_failure_leaves_what_was_there_and_no_part(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "results.json"
    if before is not None:
        path.write_text(before)
    with pytest.raises(RuntimeError):
        write_half(path)
    assert [each.read_text() for each in tmp_path.iterdir()] == ([] if before is None else [before])


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing(tmp_path / "results.json"):
        pass
