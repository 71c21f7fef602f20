"""The outcome of an evaluation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One method at one retention ratio."""

    method: str
    retention: float
    accuracy: float  # mean reward; share of right answers where rewards are 0 or 1
    stderr: float  # of the accuracy, clustered by video
    evidence_recall: float | None  # mean share of evidence tokens kept; None without evidence
    n: int  # questions


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

    @property
    def methods(self) -> list[str]:
        """Methods in the order of the rows."""
        return list(dict.fromkeys(row.method for row in self.rows))

    @property
    def retentions(self) -> list[float]:
        """Ratios, largest first."""
        return sorted({row.retention for row in self.rows}, reverse=True)

    def row(self, method: str, retention: float) -> Row:
        """The row of one method and ratio; raises KeyError where there is none."""
        for row in self.rows:
            if row.method == method and row.retention == retention:
                return row
        raise KeyError((method, retention))
