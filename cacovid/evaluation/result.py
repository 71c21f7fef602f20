"""The outcome of an evaluation, with sums that reduce correctly."""

import math
from dataclasses import dataclass, field


@dataclass
class Tally:
    """Count, sum and sum of squares of values in [0, 1]."""

    count: int = 0
    total: float = 0.0
    squares: float = 0.0

    def add(self, value: float) -> None:
        """Take one value in."""
        self.count += 1
        self.total += value
        self.squares += value * value

    def mean(self) -> float | None:
        """None of nothing."""
        return self.total / self.count if self.count else None

    def stderr(self) -> float:
        """Standard error of the mean; sqrt(p(1-p)/n) where values are 0 or 1."""
        if not self.count:
            return 0.0
        mean = self.total / self.count
        return math.sqrt(max(0.0, self.squares / self.count - mean * mean) / self.count)


@dataclass(frozen=True)
class Row:
    """One method at one retention ratio."""

    method: str
    retention: float
    accuracy: float  # mean reward; share of right answers where rewards are 0 or 1
    stderr: float  # of the accuracy, over questions
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
    full_stderr: float
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
