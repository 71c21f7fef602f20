"""What an evaluation left on disk, as far as a report shows it: of this release, earlier and later ones.

results.json   accuracies; with ``versus`` where methods were compared with their best rival
times.json     times of one question alone, where they were measured
rows.parquet   one row a method, ratio and question, where they were kept
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from cacovid.errors import UserError
from cacovid.evaluation.reports.files import RESULTS, TIMES
from cacovid.evaluation.rows import ROWS

COLUMNS = ("question", "method", "retention", "reward")  # of rows.parquet, that are read here


class _Lenient(BaseModel):
    """Fields that are not known here are passed over: a later release may write more."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Versus(_Lenient):
    """A method against its best rival at one ratio."""

    rival: str
    difference: float
    stderr: float
    mcnemar_p: float
    bootstrap_p: float


class Row(_Lenient):
    """One method at one ratio."""

    method: str
    retention: float
    accuracy: float
    stderr: float
    evidence_recall: float | None = None
    input_share: float
    mean_share: float
    agreement: float | None = None  # with the full model's own answers
    versus: Versus | None = None


class Undefined(_Lenient):
    """A row that is not there."""

    method: str
    retention: float
    reason: str
    questions: int


class Swapped(_Lenient):
    """Accuracy from tokens that were kept for another question about the clip."""

    method: str
    retention: float
    accuracy: float
    stderr: float
    change: float
    change_stderr: float


class Times(_Lenient):
    """One method at one ratio, in milliseconds."""

    method: str
    retention: float
    compress_ms: float
    prefill_ms: float | None = None
    first_token_ms: float | None = None
    first_token_with_tower_ms: float | None = None


class _TimesFile(_Lenient):
    rows: tuple[Times, ...]


class Results(_Lenient):
    """``results.json``."""

    model: str
    clips: int
    questions: int
    seed: int
    full_accuracy: float
    full_stderr: float
    rows: tuple[Row, ...]
    question_awareness: dict[str, float] = {}
    skipped: int = 0
    undefined: tuple[Undefined, ...] = ()
    swapped: tuple[Swapped, ...] = ()

    @classmethod
    def parse(cls, content: bytes, where: str) -> Self:
        """Raises UserError where another program wrote it."""
        try:
            return cls.model_validate_json(content)
        except ValidationError as error:
            wrong = error.errors()[0]
            field = ".".join(map(str, wrong["loc"])) or "content"
            raise UserError(f"{where} is no evaluation's {RESULTS}: {field}: {wrong['msg']}: evaluate again") from error

    @property
    def cells(self) -> tuple[Row | Undefined, ...]:
        """All rows, then those that are not there."""
        return (*self.rows, *self.undefined)

    @property
    def methods(self) -> list[str]:
        """In the order of the rows; those without any come last."""
        return list(dict.fromkeys(cell.method for cell in self.cells))

    @property
    def retentions(self) -> list[float]:
        """Largest first."""
        return sorted({cell.retention for cell in self.cells}, reverse=True)

    def row(self, method: str, retention: float) -> Row | None:
        """None where it is not defined, or was not asked for."""
        return next((row for row in self.rows if (row.method, row.retention) == (method, retention)), None)


@dataclass(frozen=True)
class Evaluated:
    """One evaluation's files."""

    name: str
    results: Results
    times: tuple[Times, ...]
    rows: Sequence[dict[str, Any]]  # ``COLUMNS`` of every (method, ratio, question); empty if they were not kept

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises UserError where a file cannot be read or is of another program."""
        path = folder / RESULTS
        results = Results.parse(_bytes(path), str(path))
        times = _times(folder / TIMES) if (folder / TIMES).is_file() else ()
        rows = _rows(folder / ROWS) if (folder / ROWS).is_file() else []
        return cls(folder.absolute().name, results, times, rows)


def _times(path: Path) -> tuple[Times, ...]:
    try:
        return _TimesFile.model_validate_json(_bytes(path)).rows
    except ValidationError as error:
        raise UserError(f"{path} is no evaluation's {TIMES}: {error.errors()[0]['msg']}: evaluate again") from error


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = pq.read_table(path, columns=list(COLUMNS)).to_pylist()
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} is no evaluation's {ROWS} ({reason}): evaluate again") from error
    return found


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
