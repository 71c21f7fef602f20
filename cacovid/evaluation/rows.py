"""One row a (method, ratio, question): what is measured, kept on disk as it comes, and summed up later.

    measure -> RowStore.add -> rows/*.parquet, a part every now and then -> finish -> rows.parquet, in the table's order

A kill loses the newest few questions; whoever opens the store again goes on with those that are not known.
"""

import json
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cacovid.atomic import writing
from cacovid.errors import UserError

FULL = "all tokens"  # the method of the rows that nothing was compressed for
ROWS, PARTS = "rows.parquet", "rows"
Cell = tuple[str, float]  # method, retention
_SETTINGS = b"cacovid.settings"
_LOST_SHARE = 0.02  # of the time so far, that a kill may cost


@dataclass(frozen=True, slots=True)  # there may be millions
class QuestionRow:
    """One method at one ratio on one question."""

    question: str  # id
    video: str
    method: str
    retention: float
    reward: float | None  # None: the method is not defined here
    answer: str | None  # the letter or the generated text
    undefined: str | None  # why there is no answer
    recall: float | None  # share of the evidence that was kept; None without, and of methods that do more than choose
    input_share: float | None  # of the video tokens, that enter the LLM
    mean_share: float | None  # average over its layers
    awareness: float | None  # AUC of the method's token scores, at every ratio the same
    swapped_reward: float | None = None  # compressed for another question about the clip, then asked this one
    compress_ms: float | None = None
    prefill_ms: float | None = None  # of the questions that are timed, as the next two
    tower_ms: float | None = None  # processor, tower and projector on the frames
    memory_bytes: int | None = None
    device: str | None = None  # that it was timed on


SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in ("question", "video", "method")),
        pa.field("retention", pa.float64(), nullable=False),
        pa.field("reward", pa.float64()),
        *(pa.field(name, pa.string()) for name in ("answer", "undefined")),
        *(pa.field(name, pa.float64()) for name in ("recall", "input_share", "mean_share", "awareness")),
        *(pa.field(name, pa.float64()) for name in ("swapped_reward", "compress_ms", "prefill_ms", "tower_ms")),
        pa.field("memory_bytes", pa.int64()),
        pa.field("device", pa.string()),
    ]
)


class RowStore:
    """The rows of one evaluation, on disk.

    Args:
        folder: of ``rows.parquet``, and of the parts until it is there.
        settings: all that the rows depend on.

    Raises:
        UserError: The folder holds rows of other settings, or damaged ones.
    """

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        self._folder = folder
        self._schema = SCHEMA.with_metadata({_SETTINGS: json.dumps(settings, sort_keys=True).encode()})
        self._waiting: list[QuestionRow] = []
        self._started = self._written = time.monotonic()
        self.begin(folder)
        self.known: set[str] = set()  # questions, all rows of which are there
        for path in self._files():
            self.known.update(self._read(path, ["question"]).column("question").to_pylist())

    @property
    def path(self) -> Path:
        """Of the finished rows."""
        return self._folder / ROWS

    @staticmethod
    def clear(folder: Path) -> None:
        """Forget what lies in ``folder``."""
        (folder / ROWS).unlink(missing_ok=True)
        if (folder / PARTS).is_dir():
            shutil.rmtree(folder / PARTS)

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Whether an evaluation was begun in ``folder``."""
        return (folder / PARTS).is_dir() or (folder / ROWS).is_file()

    @staticmethod
    def begin(folder: Path) -> None:
        """Let :meth:`is_in` hold from here on."""
        (folder / PARTS).mkdir(parents=True, exist_ok=True)

    def add(self, rows: Iterable[QuestionRow]) -> None:
        """Take in all rows of a question, and write what waits when it is time."""
        self._waiting += rows
        now = time.monotonic()
        if now - self._written > max(1.0, _LOST_SHARE * (now - self._started)):
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        self._written = time.monotonic()
        if self._waiting:
            numbers = [int(path.stem) for path in (self._folder / PARTS).glob("*.parquet")]
            path = self._folder / PARTS / f"{max(numbers, default=-1) + 1:06}.parquet"
            with writing(path) as part:
                pq.write_table(pa.Table.from_pylist(list(map(asdict, self._waiting)), schema=self._schema), part)
            self._waiting.clear()

    def finish(self, order: Sequence[str]) -> None:
        """Write ``rows.parquet``, questions in this order, in place of the parts."""
        self.flush()
        place = {question: number for number, question in enumerate(order)}
        table = pa.concat_tables([self._schema.empty_table(), *self._tables()])
        sorting = sorted(range(len(table)), key=[place[id] for id in table.column("question").to_pylist()].__getitem__)
        with writing(self._folder / ROWS) as part:
            pq.write_table(table.take(sorting).replace_schema_metadata(self._schema.metadata), part)
        shutil.rmtree(self._folder / PARTS)  # with what a kill left half written

    def rows(self) -> Iterator[QuestionRow]:
        """All rows written and waiting, each question's together and once."""
        for table in self._tables():
            for batch in table.to_batches(max_chunksize=4096):
                yield from (QuestionRow(**row) for row in batch.to_pylist())
        yield from self._waiting

    def _tables(self) -> Iterator[pa.Table]:
        """Of each file what those before it do not hold."""
        seen: set[str] = set()
        for path in self._files():
            table = self._read(path)
            questions = table.column("question")
            yield table.filter(pc.invert(pc.is_in(questions, pa.array(seen, pa.string()))))
            seen.update(questions.to_pylist())

    def _files(self) -> list[Path]:
        return _files(self._folder)

    def _read(self, path: Path, columns: list[str] | None = None) -> pa.Table:
        try:
            table = pq.read_table(path, columns=columns)
        except (pa.ArrowInvalid, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{path} cannot be read ({reason}): add --overwrite to begin anew") from None
        if (table.schema.metadata or {}).get(_SETTINGS) != self._schema.metadata[_SETTINGS]:
            raise UserError(
                f"output directory {self._folder} is in use: {path} holds rows of another model, table, policy, method "
                "or setting: choose another with --out, or add --overwrite to begin anew"
            )
        return table


def _files(folder: Path) -> list[Path]:
    whole = folder / ROWS
    return [*([whole] if whole.is_file() else []), *sorted((folder / PARTS).glob("*.parquet"))]
