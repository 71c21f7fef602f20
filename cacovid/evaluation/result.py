"""The outcome of an evaluation."""

from dataclasses import dataclass, field


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
    """All rows with what they were measured on."""

    model: str
    clips: int  # different videos
    questions: int
    seed: int
    full_accuracy: float  # from all video tokens
    full_stderr: float  # clustered by video
    rows: tuple[Row, ...]
    question_awareness: dict[str, float] = field(default_factory=dict)  # AUC by scoring method
    main_policy: str | None = None  # the first trained policy's label
    skipped: int = 0  # items that could not be used

    @property
    def question_awareness_auc(self) -> float | None:
        """The main policy's AUC; None without a policy or without evidence."""
        return self.question_awareness.get(self.main_policy) if self.main_policy is not None else None

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
