"""Questions that stay on disk: a table of millions costs a process a few megabytes.

They lie in an unnamed temporary file of equal Arrow batches, of which one is read when a question is asked for. Parquet
itself would have to be unpacked a whole row group for each.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from cacovid.data.table import LISTS, SCHEMA
from cacovid.records import VideoQuestion

_BATCH = 256  # rows of each batch but the last


class StoredQuestions(Sequence[VideoQuestion]):
    """Items as a sequence.

    Args:
        items: taken one by one.
        folder: where the file lies while this object lives; made if absent.
    """

    def __init__(self, items: Iterable[VideoQuestion], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - read from as long as this object lives
        rows = ({name: getattr(item, name) for name in SCHEMA.names} for item in items)
        with pa.ipc.new_file(self._file, SCHEMA) as writer:
            while batch := list(islice(rows, _BATCH)):
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=SCHEMA))
        self._reader = pa.ipc.open_file(self._file)
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

    def ids(self) -> Iterator[str]:
        """The ids in order, without the rest of the questions."""
        for number in range(self._batches):
            yield from self._reader.get_batch(number).column("id").to_pylist()


class _ById(Mapping[str, VideoQuestion]):
    """16 bytes a question, once one is asked for: the ids' hashes, sorted, and where they stand."""

    def __init__(self, questions: StoredQuestions) -> None:
        self._questions = questions

    @cached_property
    def _index(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        hashes = np.fromiter(map(hash, self), np.int64, len(self))
        places = np.argsort(hashes)
        return hashes[places], places

    def __getitem__(self, key: str) -> VideoQuestion:
        hashes, places = self._index
        first, last = (int(np.searchsorted(hashes, hash(key), side)) for side in ("left", "right"))
        for place in map(int, places[first:last]):
            found: VideoQuestion = self._questions[place]
            if found.id == key:
                return found
        raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return self._questions.ids()

    def __len__(self) -> int:
        return len(self._questions)


def _question(row: pa.RecordBatch) -> VideoQuestion:
    values: dict[str, Any] = row.to_pylist()[0]
    for name in LISTS:
        values[name] = tuple(values[name])
    return VideoQuestion(**values)
