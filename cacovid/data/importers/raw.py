"""Rows of a collection's own files, as they are written there."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cacovid.errors import UserError

SUFFIXES = (".json", ".jsonl", ".parquet")


class Rejected(Exception):
    """A row that is not imported.

    Attributes:
        reason: Why, in the same words for all rows of the kind: they are counted by it.
        detail: What is special about this row.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class RawRow:
    """One row, and where it stands."""

    file: Path
    number: int  # from 0, in its file
    values: Mapping[str, Any]

    def text(self, name: str) -> str:
        """A field that must be there; numbers become text.

        Raises:
            Rejected: It is missing, empty or nested.
        """
        value = self.values.get(name)
        if value is None or isinstance(value, dict | list) or not str(value).strip():
            raise Rejected(f"no {name}")
        return str(value).strip()

    def optional(self, name: str) -> str:
        """A field that may be missing: empty then."""
        value = self.values.get(name)
        return "" if value is None else str(value).strip()

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; missing: empty. Raises :class:`Rejected` where it is no list."""
        value = self.values.get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise Rejected(f"{name} is no list")
        return tuple(str(each).strip() for each in value)

    def seconds(self, name: str) -> float | None:
        """A number that may be missing. Raises :class:`Rejected` where it is none."""
        value = self.values.get(name)
        if value is None or value == "":
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise Rejected(f"{name} is no number", f"{value!r}") from None
        return None if math.isnan(number) else number


def files_of(path: Path) -> list[Path]:
    """``path`` itself, or the files of rows in the folder ``path``.

    Raises:
        UserError: There are none.
    """
    if path.is_file():
        return [path]
    found = sorted(each for each in path.glob("*") if each.suffix in SUFFIXES) if path.is_dir() else []
    if not found:
        raise UserError(f"no rows at {path}: give a file, or a folder of files, that end in {', '.join(SUFFIXES)}")
    return found


def raw_rows(file: Path) -> Iterator[RawRow]:
    """The rows of one file, a few at a time.

    Raises:
        UserError: It is no readable JSON or Parquet, or holds something other than rows.
    """
    for number, values in enumerate(_parquet(file) if file.suffix == ".parquet" else _json(file)):
        if not isinstance(values, dict):
            raise UserError(f"{file}: entry {number} is a {type(values).__name__}, not a row of named fields")
        yield RawRow(file, number, values)


def load_json(file: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    """A whole JSON file; raises UserError where it is none."""
    try:
        return json.loads(_read(file))
    except json.JSONDecodeError as error:
        raise _broken(file, error) from None


def _parquet(file: Path) -> Iterator[Any]:
    try:
        with pq.ParquetFile(file, pre_buffer=False) as opened:
            for batch in opened.iter_batches(1_000):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{file} is no readable Parquet ({str(error).splitlines()[0]}); fetch it again") from None


def _json(file: Path) -> Iterator[Any]:
    """Entries of a JSON array, or values that follow one another (JSON lines): decoded one by one."""
    text, decoder = _read(file), json.JSONDecoder()
    place = _skip(text, 0, "[")
    array = "[" in text[:place]
    try:
        while place < len(text) and not (array and text[place] == "]"):
            value, place = decoder.raw_decode(text, place)
            yield value
            after = _skip(text, place, "," if array else "")
            if array and text[place:after].strip() != "," and text[after : after + 1] != "]":
                raise json.JSONDecodeError("no comma or end of the list", text, after)
            place = after
    except json.JSONDecodeError as error:
        raise _broken(file, error) from None
    if array and text[place:].strip() != "]":
        raise UserError(f"{file} is no readable JSON (the list does not end, or more follows it); fetch it again")


def _skip(text: str, place: int, once: str) -> int:
    """The place after white space, at most one character ``once``, and white space."""
    while place < len(text) and (text[place].isspace() or (once and text[place] == once)):
        once = "" if text[place] == once else once
        place += 1
    return place


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise UserError(f"{file} is no readable JSON ({reason}); fetch it again") from None


def _broken(file: Path, error: json.JSONDecodeError) -> UserError:
    return UserError(f"{file} is no readable JSON ({error.msg} at line {error.lineno}); fetch it again")
