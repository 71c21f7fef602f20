"""The outcome of an evaluation."""

from dataclasses import dataclass, field

from cacovid.evaluation.comparison import Comparison


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
    share_of_full: float | None = None  # of the full model's accuracy; None where that is 0
    agreement: float = 1.0  # share of the questions that are answered as from all tokens
    versus: Comparison | None = None  # against the best other training-free method of this budget; None: there is none


@dataclass(frozen=True)
class Undefined:
    """A row that a method's own definition does not cover, on this model, these clips or this budget."""

    method: str
    retention: float
    reason: str  # of the first question that it fails on
    questions: int  # that it fails on


@dataclass(frozen=True)
class Slice:
    """A row's part of the questions that have something in common."""

    by: str  # duration, group, question_type, or random: what random tokens of this budget lead to
    value: str
    method: str
    retention: float
    accuracy: float
    stderr: float  # clustered by video
    n: int


@dataclass(frozen=True)
class Swapped:
    """A row's control: tokens that were kept for another question about the same clip."""

    method: str
    retention: float
    accuracy: float  # from these tokens
    stderr: float  # of it, clustered by video
    change: float  # against the row's own tokens, on the same questions
    change_stderr: float  # of it, clustered by video
    n: int  # questions that share their clip with one about something else


@dataclass(frozen=True)
class Times:
    """One method at one ratio: medians in milliseconds of one question alone, see :mod:`cacovid.evaluation.timing`."""

    method: str
    retention: float
    compress_ms: float  # choosing or merging; not the steps within the LLM
    prefill_ms: float | None  # the LLM's pass over the compressed prompt; None: no question was timed
    tower_ms: float | None  # processor, vision tower and projector
    first_token_ms: float | None  # compress and prefill
    first_token_with_tower_ms: float | None
    memory_bytes: int | None  # the most of any question
    device: str | None  # where; several are joined by " and "


@dataclass(frozen=True)
class EvaluationResult:
    """All rows with what they were measured on; ``results.json`` holds these fields in this order, without times."""

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
    slices: tuple[Slice, ...] = ()
    swapped: tuple[Swapped, ...] = ()  # with the control alone
    times: tuple[Times, ...] = field(default=(), compare=False)  # go to times.json; the full model's first

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

    def times_of(self, method: str, retention: float) -> Times | None:
        """None where nothing was measured."""
        return next((each for each in self.times if (each.method, each.retention) == (method, retention)), None)
