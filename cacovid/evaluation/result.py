"""The outcome of an evaluation."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One method at one retention ratio."""

    method: str
    retention: float
    accuracy: float  # mean reward; share of right answers where rewards are 0 or 1
    stderr: float  # of the accuracy, clustered by video
    evidence_recall: (
        float | None
    )  # mean share of evidence tokens kept; None without, and of methods that merge or act in the LLM
    n: int  # questions
    input_share: float  # mean share of the video tokens that enter the LLM
    mean_share: float  # the same as average over the LLM's layers: methods compare at equal ones
    compress_ms: float = field(compare=False)  # mean wall time of choosing or merging; not of steps within the LLM


@dataclass(frozen=True)
class Undefined:
    """A row that a method's own definition does not cover, on this model, these clips or this budget."""

    method: str
    retention: float
    reason: str  # of the first question that it fails on
    questions: int  # that it fails on


@dataclass(frozen=True)
class EvaluationResult:
    """All rows with what they were measured on; ``results.json`` holds these fields in this order."""

    model: str
    clips: int  # different videos
    questions: int
    seed: int
    full_accuracy: float  # from all video tokens
    question_awareness_auc: float | None  # of the first trained policy; None without one or without evidence
    rows: tuple[Row, ...]
    full_stderr: float  # clustered by video
    question_awareness: dict[str, float]  # AUC by scoring method
    skipped: int  # items that could not be used
    undefined: tuple[Undefined, ...] = ()  # rows that are not there, and why

    @property
    def cells(self) -> tuple[Row | Undefined, ...]:
        """All rows, then those that are not there."""
        return (*self.rows, *self.undefined)

    @property
    def methods(self) -> list[str]:
        """Methods in the order of the rows; those without any row come last."""
        return list(dict.fromkeys(cell.method for cell in self.cells))

    @property
    def retentions(self) -> list[float]:
        """Ratios, largest first."""
        return sorted({cell.retention for cell in self.cells}, reverse=True)

    def row(self, method: str, retention: float) -> Row:
        """The row of one method and ratio; raises KeyError where there is none."""
        found = self.cell(method, retention)
        if isinstance(found, Row):
            return found
        raise KeyError((method, retention, found.reason))

    def cell(self, method: str, retention: float) -> Row | Undefined:
        """The row of one method and ratio, or why there is none; raises KeyError where it was not asked for."""
        for cell in self.cells:
            if cell.method == method and cell.retention == retention:
                return cell
        raise KeyError((method, retention))
