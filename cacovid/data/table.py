"""The question table: one Parquet row per :class:`~cacovid.records.VideoQuestion`.

========== ============== ==================================================================
column     type           meaning
========== ============== ==================================================================
id         string         unique name of the question; seeds derive from it
video      string         path of the video, relative to the table's folder or absolute
question   string         the question alone, without options
options    list<string>   option texts without letters; empty unless multiple choice
answer     string         the letter for multiple choice, else the text or number
problem_type string       multiple choice, numerical, OCR, free-form or regression
source     string         the collection that the row comes from
evidence   list<int32>    optional: token cells t*H*W + row*W + column of the asked object
other_objects list<int32> optional: token cells of every other object
start      double         optional: seconds into the video from which on it is watched; null: from its start
end        double         optional: and until when; null: to its end
duration   double         optional: seconds of the whole video, as its collection says
group      string         optional: its collection's group of lengths, e.g. short
question_type string      optional: its collection's kind of question
========== ============== ==================================================================

Further columns are ignored. A wrong table is a :class:`UserError`; a wrong row is a
:class:`BadItem`, so that a run can set it aside and go on.
"""

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cacovid.atomic import writing
from cacovid.data.question import check_question
from cacovid.data.skipped import SkippedItems
from cacovid.errors import BadItem, UserError
from cacovid.records import VideoQuestion

SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("id", "video", "question")),
        pa.field("options", pa.list_(pa.string()), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("answer", "problem_type", "source")),
        pa.field("evidence", pa.list_(pa.int32())),
        pa.field("other_objects", pa.list_(pa.int32())),
        *(pa.field(name, pa.float64()) for name in ("start", "end", "duration")),
        *(pa.field(name, pa.string()) for name in ("group", "question_type")),
    ]
)
NEEDED_COLUMNS = tuple(field.name for field in SCHEMA if not field.nullable)
READ_ROWS = 2_048  # in memory at a time
WRITTEN_ROWS = 20_000  # of a row group
LISTS = tuple(field.name for field in SCHEMA if pa.types.is_list(field.type))


def read_questions(path: str | os.PathLike[str], *, skipped: SkippedItems | None = None) -> list[VideoQuestion]:
    """All usable rows of a Parquet table, see :func:`stream_questions`."""
    return list(stream_questions(path, skipped=skipped))


def stream_questions(path: str | os.PathLike[str], *, skipped: SkippedItems | None = None) -> Iterator[VideoQuestion]:
    """The usable rows of a Parquet table, in order, a few at a time; video paths come back absolute.

    Args:
        path: the Parquet file.
        skipped: where unusable rows are set aside; without it the first one raises.

    Raises:
        UserError: no readable Parquet file, a missing or mistyped column, no usable row.
        BadItem: an unusable row, if ``skipped`` is None.
    """
    table_path = Path(path)
    seen: set[str] = set()
    read = 0
    for number, row in enumerate(_rows(table_path)):
        read += 1
        try:
            item = _parse_row(row, number, table_path)
            check_question(item)
            if item.id in seen:
                raise BadItem(f"row {number} of {table_path}: id {item.id!r} occurs twice; make ids unique")
        except BadItem as error:
            if skipped is None:
                raise
            skipped.add(str(row["id"] or f"row {number}"), str(row["video"]), str(error))
            continue
        seen.add(item.id)
        yield item
    if not seen:
        raise UserError(f"{table_path} holds no usable question ({read} rows read); check the table's rows")


def write_questions(path: str | os.PathLike[str], items: Iterable[VideoQuestion]) -> None:
    """Write questions as a Parquet table, a few at a time; videos below the table's folder become relative paths."""
    table_path = Path(path)
    folder = table_path.parent.resolve()
    table_path.parent.mkdir(parents=True, exist_ok=True)
    rows = ({name: getattr(item, name) for name in SCHEMA.names} | {"video": _stored(item, folder)} for item in items)
    with writing(table_path) as part, pq.ParquetWriter(part, SCHEMA) as writer:
        while group := list(islice(rows, WRITTEN_ROWS)):
            writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))


def _stored(item: VideoQuestion, folder: Path) -> str:
    video = Path(item.video)
    absolute = _resolved(folder / video.parent) / video.name
    return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else str(absolute)


@lru_cache(maxsize=4096)
def _resolved(folder: Path) -> Path:
    return folder.resolve()


def count_rows(path: str | os.PathLike[str]) -> int:
    """Rows of a table, usable or not. Raises UserError as :func:`stream_questions`."""
    with _opened(Path(path)) as file:
        rows: int = file.metadata.num_rows
        return rows


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    """The rows as written, wanted columns alone: a further column of any type does not matter."""
    with _opened(path) as file:
        columns = [name for name in SCHEMA.names if name in file.schema_arrow.names]
        for batch in file.iter_batches(READ_ROWS, columns=columns):
            yield from batch.to_pylist()


@contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    if not path.is_file():
        raise UserError(f"no question table at {path}; give a Parquet file with columns {', '.join(NEEDED_COLUMNS)}")
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            _check_columns(file.schema_arrow, path)
            yield file
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is not a readable Parquet table ({reason}); write it with pyarrow or pandas") from None


def _check_columns(schema: pa.Schema, path: Path) -> None:
    missing = [name for name in NEEDED_COLUMNS if name not in schema.names]
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(missing)}; needed are {', '.join(NEEDED_COLUMNS)}")
    for field in SCHEMA:
        if field.name in schema.names and not _compatible(schema.field(field.name).type, field.type):
            found = schema.field(field.name).type
            raise UserError(f"{path}: column {field.name!r} has type {found}; make it {field.type}")


def _compatible(found: pa.DataType, wanted: pa.DataType) -> bool:
    """The same kind of type; widths (large_string, int64) and dictionary coding may differ."""
    if pa.types.is_dictionary(found):
        return _compatible(found.value_type, wanted)
    if pa.types.is_list(wanted):
        lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
        if not any(check(found) for check in lists):
            return False
        # An all-empty column is written as list<null> by pandas.
        return pa.types.is_null(found.value_type) or _compatible(found.value_type, wanted.value_type)
    if pa.types.is_null(found) and wanted in (pa.float64(), pa.string()):
        return True  # an optional column without a value
    if pa.types.is_floating(wanted):
        return bool(pa.types.is_floating(found) or pa.types.is_integer(found))
    if pa.types.is_string(wanted):
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found))
    return bool(pa.types.is_integer(found))


def _parse_row(row: Mapping[str, Any], number: int, table_path: Path) -> VideoQuestion:
    for name in NEEDED_COLUMNS:
        if row[name] is None:
            raise BadItem(f"row {number} of {table_path}: {name} is null; fill it")
    for name in LISTS:
        if any(value is None for value in row.get(name) or ()):
            raise BadItem(f"row {number} of {table_path}: {name} holds a null; remove it")
    video = Path(row["video"])
    if row["video"] and not video.is_absolute():
        video = table_path.parent.resolve() / video
    return VideoQuestion(
        id=row["id"],
        video=str(video) if row["video"] else "",
        question=row["question"],
        options=tuple(row["options"]),
        answer=row["answer"],
        problem_type=row["problem_type"],
        source=row["source"],
        evidence=tuple(row.get("evidence") or ()),
        other_objects=tuple(row.get("other_objects") or ()),
        start=_seconds(row.get("start")),
        end=_seconds(row.get("end")),
        duration=_seconds(row.get("duration")),
        group=row.get("group") or "",
        question_type=row.get("question_type") or "",
    )


def _seconds(value: float | None) -> float | None:
    """NaN is what pandas makes of a missing number."""
    return None if value is None or math.isnan(value) else float(value)
