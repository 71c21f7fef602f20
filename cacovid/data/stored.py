"""Questions that stay on disk: a table of millions costs a process a few megabytes.

They lie in an unnamed temporary file of equal Arrow batches, mapped into memory; a question is made when it is asked
for. Parquet itself would have to be unpacked a whole row group for each.
"""

import mmap
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.compute as pc

from cacovid.data.table import SCHEMA
from cacovid.records import VideoQuestion

_BATCH = 1_024  # rows of each batch but the last
_LISTS = [field.name for field in SCHEMA if pa.types.is_list(field.type)]


class StoredQuestions(Sequence[VideoQuestion]):
    """Items as a sequence.

    Args:
        items: taken one by one.
        folder: where the file lies while this object lives; made if absent.
    """

    def __init__(self, items: Iterable[VideoQuestion], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            rows = ({name: getattr(item, name) for name in SCHEMA.names} for item in items)
            with pa.ipc.new_file(file, SCHEMA) as writer:
                while batch := list(islice(rows, _BATCH)):
                    writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=SCHEMA))
            file.flush()
            self._reader = pa.ipc.open_file(pa.py_buffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
        self._batches = self._reader.num_record_batches
        last = self._reader.get_batch(self._batches - 1).num_rows if self._batches else 0
        self._size: int = max(self._batches - 1, 0) * _BATCH + last
        self.by_id: Mapping[str, VideoQuestion] = _ById(self)

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, index: int) -> VideoQuestion: ...

    @overload
    def __getitem__(self, index: slice) -> list[VideoQuestion]: ...

    def __getitem__(self, index: int | slice) -> VideoQuestion | list[VideoQuestion]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = range(self._size)[index]
        return _question(self._reader.get_batch(place // _BATCH).slice(place % _BATCH, 1))

    def ids(self) -> Iterator[tuple[int, pa.Array]]:
        """The ids batch by batch, each with the place of its first."""
        for number in range(self._batches):
            yield number * _BATCH, self._reader.get_batch(number).column("id")


class _ById(Mapping[str, VideoQuestion]):
    """Looked for from end to end: it is asked for after restores alone."""

    def __init__(self, questions: StoredQuestions) -> None:
        self._questions = questions

    def __getitem__(self, key: str) -> VideoQuestion:
        for first, ids in self._questions.ids():
            place: int = pc.index(ids, key).as_py()
            if place >= 0:
                return self._questions[first + place]
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        for _, ids in self._questions.ids():
            yield from ids.to_pylist()

    def __len__(self) -> int:
        return len(self._questions)


def _question(row: pa.RecordBatch) -> VideoQuestion:
    values: dict[str, Any] = row.to_pylist()[0]
    for name in _LISTS:
        values[name] = tuple(values[name])
    return VideoQuestion(**values)
