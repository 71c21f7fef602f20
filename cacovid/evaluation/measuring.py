"""Every method at every retention ratio on the same questions, with the same budgets.

    item ──reader──► case ──question──► answers of all methods, or why there are none ──► sums ──► EvaluationResult

An item is decoded and encoded once. Nothing of an item counts before all of it is measured; ``reports`` writes the
result.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cacovid.data.reader import ItemReader
from cacovid.data.skipped import SkippedItems
from cacovid.errors import BadItem, UserError
from cacovid.evaluation.question import Answer, Cell, Measured, measure_question
from cacovid.evaluation.result import EvaluationResult, Row, Undefined
from cacovid.evaluation.statistics import Tally
from cacovid.methods.policy_method import PolicyMethod
from cacovid.methods.protocol import EvaluationCase, Method, TrainingFree
from cacovid.methods.registry import UNTRAINED
from cacovid.methods.selection import budget
from cacovid.records import VideoQuestion

Progress = Callable[[int, int], None]  # items done, items in all


@dataclass
class _Totals:
    full: Tally = field(default_factory=Tally)
    answers: dict[Cell, list[tuple[str, Answer]]] = field(default_factory=lambda: defaultdict(list))  # by video
    reasons: dict[Cell, list[str]] = field(default_factory=lambda: defaultdict(list))
    awareness: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))

    def add(self, video: str, measured: Measured) -> None:
        """Take in one question about ``video``."""
        self.full.add(measured.full, video)
        for cell, answer in measured.answers.items():
            self.answers[cell].append((video, answer))
        for cell, reason in measured.reasons.items():
            self.reasons[cell].append(reason)
        for name, area in measured.awareness.items():
            if area is not None:
                self.awareness[name].add(area, video)


def evaluate(
    reader: ItemReader,
    methods: Sequence[Method],
    items: Sequence[VideoQuestion],
    retentions: Sequence[float],
    *,
    seed: int = 0,
    skipped: SkippedItems | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Answer all ``items`` from what each method keeps at each ratio, and from all tokens.

    Args:
        reader: the frozen Video-LLM with its video reader; its model configuration says how long
            generated answers get and which positions retained tokens take. It is told to record the vision tower's
            attention where a method needs it.
        methods: from :func:`cacovid.methods.registry.build_methods` or of your own making.
        items: questions; neighbours about the same video are cheapest.
        retentions: shares of video tokens to keep, each in (0, 1].
        seed: of random methods; the result depends on nothing else that is random.
        skipped: where unusable items are set aside; without it the first one raises.
        progress: called after every item.

    Raises:
        UserError: a ratio outside (0, 1], no usable item, an oracle without evidence.
        BadItem: an unusable item, if ``skipped`` is None.
    """
    ratios = check_retentions(retentions)
    if any(isinstance(method, TrainingFree) and method.needs_tower_attention for method in methods):
        reader.tower_attention = True
    totals = _Totals()
    for done, item in enumerate(items, start=1):
        try:
            case = EvaluationCase(item, reader.encode(item), seed)
            measured = measure_question(reader.video_llm, methods, case, ratios)
        except BadItem as error:
            if skipped is None:
                raise
            skipped.add(item.id, item.video, str(error))
        else:
            totals.add(item.video, measured)
            if skipped is not None:
                skipped.use()
        if progress is not None:
            progress(done, len(items))
    if skipped is not None:
        skipped.finish()
    if not totals.full.count:
        raise UserError(f"none of the {len(items)} questions could be used; each was set aside with its reason")
    return _result(reader, methods, ratios, totals, seed, 0 if skipped is None else skipped.skipped)


def check_retentions(retentions: Sequence[float]) -> list[float]:
    """The distinct ratios, largest first; raises UserError for one outside (0, 1] or none at all."""
    if not retentions:
        raise UserError("no retention ratio given: give e.g. 0.25,0.1")
    for retention in retentions:
        budget(retention, 1)
    return sorted(set(retentions), reverse=True)


def _row(method: str, ratio: float, answers: Sequence[tuple[str, Answer]]) -> Row:
    accuracy, recall, before, mean, seconds = (Tally() for _ in range(5))
    for video, answer in answers:
        accuracy.add(answer.reward, video)
        before.add(answer.input_share, video)
        mean.add(answer.mean_share, video)
        seconds.add(answer.seconds, video)
        if answer.recall is not None:
            recall.add(answer.recall, video)
    return Row(
        method,
        ratio,
        accuracy.total / accuracy.count,
        accuracy.stderr(),
        recall.mean(),
        accuracy.count,
        before.total / before.count,
        mean.total / mean.count,
        1000 * seconds.total / seconds.count,
    )


def _result(
    reader: ItemReader,
    methods: Sequence[Method],
    ratios: Sequence[float],
    totals: _Totals,
    seed: int,
    set_aside: int,
) -> EvaluationResult:
    cells = [(method.name, ratio) for method in methods for ratio in ratios]
    # A row over some of the questions could not be compared with the others.
    undefined = [Undefined(*cell, found[0], len(found)) for cell in cells if (found := totals.reasons.get(cell))]
    rows = [_row(*cell, totals.answers[cell]) for cell in cells if cell not in totals.reasons]
    full = totals.full.mean()
    assert full is not None
    awareness = {name: mean for name, tally in totals.awareness.items() if (mean := tally.mean()) is not None}
    trained = [method.name for method in methods if isinstance(method, PolicyMethod) and method.name != UNTRAINED]
    return EvaluationResult(
        model=reader.video_llm.config.path,
        clips=len(totals.full.by_video),
        questions=totals.full.count,
        seed=seed,
        full_accuracy=full,
        question_awareness_auc=awareness.get(trained[0]) if trained else None,
        rows=tuple(rows),
        full_stderr=totals.full.stderr(),
        question_awareness=awareness,
        skipped=set_aside,
        undefined=tuple(undefined),
    )
