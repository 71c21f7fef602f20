"""Rows of single questions summed up to an :class:`EvaluationResult`.

Whatever order the rows come in, and whoever measured them, the sums are taken in the order of the items: the result is
the same to the last digit.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from cacovid.errors import UserError
from cacovid.evaluation.comparison import Comparison, Paired, compare
from cacovid.evaluation.result import EvaluationResult, Row, Swapped, Times, Undefined
from cacovid.evaluation.row_sums import known_reward, mean, reward, tally
from cacovid.evaluation.rows import FULL, Cell, QuestionRow
from cacovid.evaluation.slices import slices_of
from cacovid.methods.registry import BASELINES
from cacovid.records import VideoQuestion


@dataclass(frozen=True)
class Ran:
    """What was evaluated."""

    model: str
    items: Sequence[VideoQuestion]
    methods: Sequence[str]  # by name, in their order
    policies: Sequence[str]  # those of them that were trained
    ratios: Sequence[float]  # largest first
    seed: int


class _Rows:
    """The rows by cell and question, questions in the items' order."""

    def __init__(self, rows: Iterable[QuestionRow], items: Sequence[VideoQuestion]) -> None:
        found: dict[Cell, dict[str, QuestionRow]] = defaultdict(dict)
        for row in rows:
            found[row.method, row.retention][row.question] = row
        self._found = found
        full = found[FULL, 1.0]
        self.items = [item for item in items if item.id in full]

    def of(self, cell: Cell) -> dict[str, QuestionRow]:
        """All rows of one cell that are defined, by question."""
        rows = self._found[cell]
        return {item.id: row for item in self.items if (row := rows[item.id]).reward is not None}

    def reasons(self, cell: Cell) -> list[str]:
        """Why there are no rows, in the items' order."""
        rows = self._found[cell]
        return [reason for item in self.items if (reason := rows[item.id].undefined) is not None]


def summed_up(rows: Iterable[QuestionRow], ran: Ran, skipped: int) -> EvaluationResult:
    """The whole result.

    Args:
        rows: of every usable item, all methods and ratios.
        ran: what was asked for.
        skipped: items set aside.

    Raises:
        UserError: There is no row at all.
    """
    known = _Rows(rows, ran.items)
    if not known.items:
        raise UserError(f"none of the {len(ran.items)} questions could be used; each was set aside with its reason")
    cells = [(method, ratio) for method in ran.methods for ratio in ran.ratios]
    # A row over some of the questions could not be compared with the others.
    undefined = [Undefined(*cell, found[0], len(found)) for cell in cells if (found := known.reasons(cell))]
    absent = {(each.method, each.retention) for each in undefined}
    defined = {cell: known.of(cell) for cell in cells if cell not in absent}
    full = known.of((FULL, 1.0))
    plain = {cell: _row(cell, found, full) for cell, found in defined.items()}
    versus = _versus(plain, defined, ran.seed)
    awareness = _awareness(ran, defined)
    accuracy = tally(full.values(), reward)
    return EvaluationResult(
        model=ran.model,
        clips=len(accuracy.by_video),
        questions=accuracy.count,
        seed=ran.seed,
        full_accuracy=mean(accuracy),
        question_awareness_auc=awareness.get(ran.policies[0]) if ran.policies else None,
        rows=tuple(Row(**{**vars(row), "versus": versus.get(cell)}) for cell, row in plain.items()),
        full_stderr=accuracy.stderr(),
        question_awareness=awareness,
        skipped=skipped,
        undefined=tuple(undefined),
        slices=tuple(slices_of(known.items, {(FULL, 1.0): full, **defined})),
        swapped=tuple(each for cell, found in defined.items() if (each := _swapped(cell, found)) is not None),
        times=tuple(_times(cell, found) for cell, found in ({(FULL, 1.0): full} | defined).items()),
    )


def _row(cell: Cell, rows: Mapping[str, QuestionRow], full: Mapping[str, QuestionRow]) -> Row:
    accuracy = tally(rows.values(), reward)
    alike = sum(row.answer == full[question].answer for question, row in rows.items())
    return Row(
        *cell,
        accuracy=mean(accuracy),
        stderr=accuracy.stderr(),
        evidence_recall=tally(rows.values(), lambda row: row.recall).mean(),
        n=accuracy.count,
        input_share=mean(tally(rows.values(), lambda row: row.input_share)),
        mean_share=mean(tally(rows.values(), lambda row: row.mean_share)),
        share_of_full=mean(accuracy) / whole if (whole := mean(tally(full.values(), reward))) else None,
        agreement=alike / len(rows),
    )


def _versus(
    rows: Mapping[Cell, Row], found: Mapping[Cell, Mapping[str, QuestionRow]], seed: int
) -> dict[Cell, Comparison]:
    """Each row against the best other training-free method that keeps to the same budget."""
    pairs: dict[Cell, tuple[str, Paired]] = {}
    for cell, row in rows.items():
        rivals = [other for other in _rivals(rows, cell[1]) if other.method != row.method]
        if not rivals or cell[1] == 1:
            continue
        best = max(rivals, key=lambda other: other.accuracy)  # of equally good ones the first
        ours, theirs = found[cell].values(), found[best.method, cell[1]].values()
        pairs[cell] = (
            best.method,
            Paired([row.video for row in ours], *(list(map(known_reward, side)) for side in (ours, theirs))),
        )
    return compare(pairs, seed)


def _rivals(rows: Mapping[Cell, Row], ratio: float) -> list[Row]:
    """Training-free methods that neither know the answer's place nor spend more tokens than asked for."""
    found = [row for (method, each), row in rows.items() if each == ratio and method in BASELINES]
    # One token is the least: at small ratios it may be more than the share asked for.
    most = max(ratio, min((row.mean_share for row in found), default=ratio)) + 1e-9
    return [row for row in found if row.mean_share <= most and not BASELINES[row.method].needs_evidence]


def _awareness(ran: Ran, found: Mapping[Cell, Mapping[str, QuestionRow]]) -> dict[str, float]:
    means = {}
    for method in ran.methods:
        rows = next((found[method, ratio] for ratio in ran.ratios if (method, ratio) in found), {})
        area = tally(rows.values(), lambda row: row.awareness).mean()
        if area is not None:
            means[method] = area
    return means


def _swapped(cell: Cell, rows: Mapping[str, QuestionRow]) -> Swapped | None:
    both = [row for row in rows.values() if row.swapped_reward is not None]
    if not both:
        return None
    accuracy = tally(both, lambda row: row.swapped_reward)
    change = Paired(
        [row.video for row in both], [row.swapped_reward or 0.0 for row in both], list(map(known_reward, both))
    )
    lost = change.differences()
    return Swapped(*cell, mean(accuracy), accuracy.stderr(), mean(lost), lost.stderr(), accuracy.count)


def _times(cell: Cell, rows: Mapping[str, QuestionRow]) -> Times:
    timed = [row for row in rows.values() if row.prefill_ms is not None]
    compress = median(row.compress_ms or 0.0 for row in timed or rows.values())
    prefill = median(row.prefill_ms or 0.0 for row in timed) if timed else None
    tower = median(row.tower_ms or 0.0 for row in timed) if timed else None
    first = None if prefill is None else compress + prefill
    with_tower = None if first is None or tower is None else first + tower
    memory = max((row.memory_bytes or 0 for row in timed), default=None)
    devices = " and ".join(sorted({row.device for row in timed if row.device is not None})) or None
    return Times(*cell, compress, prefill, tower, first, with_tower, memory, devices)
