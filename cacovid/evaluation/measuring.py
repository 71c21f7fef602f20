"""Every method at every retention ratio on the same questions, with the same budgets.

    items ──plan──► Asked ──measure, here or by actors──► Outcome: rows ──gather, store──► summed up: EvaluationResult

An item is decoded and encoded once. Nothing of an item counts before all of it is measured; ``reports`` writes the
result.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from cacovid.data.reader import ItemReader
from cacovid.data.skipped import SkippedItems
from cacovid.errors import BadItem, UserError
from cacovid.evaluation.question import Answer, measure_question
from cacovid.evaluation.result import EvaluationResult
from cacovid.evaluation.rows import QuestionRow, RowStore
from cacovid.evaluation.summary import Ran, summed_up
from cacovid.evaluation.timing import timed_rows
from cacovid.methods.policy_method import PolicyMethod
from cacovid.methods.protocol import EvaluationCase, Method, needs_tower_attention
from cacovid.methods.registry import UNTRAINED
from cacovid.methods.selection import budget
from cacovid.records import Clip, VideoQuestion

Progress = Callable[[int, int], None]  # items done, items in all
TIMED = 5  # questions, on different clips, that are timed alone


@dataclass(frozen=True)
class Asked:
    """One question to measure, with all that it takes."""

    item: VideoQuestion
    other: VideoQuestion | None = None  # another one about the clip, for the control
    timed: bool = False


def plan(items: Sequence[VideoQuestion], *, swapped: bool = False, timed: int = 0) -> list[Asked]:
    """What to do with each of ``items``.

    Args:
        swapped: with the control, for those that share their clip with a question about something else.
        timed: the first question about each of so many clips is timed.
    """
    by_clip: dict[Clip, list[VideoQuestion]] = {}
    for item in items:
        by_clip.setdefault(item.clip, []).append(item)
    first = {each[0].id for each in list(by_clip.values())[:timed]}
    return [Asked(item, _other(item, by_clip[item.clip]) if swapped else None, item.id in first) for item in items]


def _other(item: VideoQuestion, beside: Sequence[VideoQuestion]) -> VideoQuestion | None:
    """The next one about the clip that asks something else; behind the last one comes the first.

    Where the table knows the evidence, it is of other tokens: what serves both questions would tell nothing.
    """
    place = beside.index(item)
    for each in (*beside[place + 1 :], *beside[:place]):
        if each.question != item.question and not set(each.evidence) & set(item.evidence):
            return each
    return None


@dataclass(frozen=True)
class Outcome:
    """What became of one question."""

    item: VideoQuestion
    rows: Sequence[QuestionRow] = ()  # all of them
    reason: str | None = None  # why it could not be used


def measure(
    reader: ItemReader,
    methods: Sequence[Method],
    asked: Asked,
    ratios: Sequence[float],
    seed: int,
    full: dict[str, Answer] | None = None,
) -> Outcome:
    """Everything about one question; ``full`` as in :func:`evaluate`."""
    item, other = asked.item, asked.other
    try:
        case = EvaluationCase(item, reader.encode(item), seed)
        beside = None if other is None else EvaluationCase(other, reader.encode(other), seed)
        rows = measure_question(reader.video_llm, methods, case, ratios, beside, full).rows(item)
        return Outcome(item, timed_rows(reader, methods, case, rows) if asked.timed else rows)
    except BadItem as error:
        return Outcome(item, reason=str(error))


def evaluate(
    reader: ItemReader,
    methods: Sequence[Method],
    items: Sequence[VideoQuestion],
    retentions: Sequence[float],
    *,
    seed: int = 0,
    skipped: SkippedItems | None = None,
    progress: Progress | None = None,
    store: RowStore | None = None,
    swapped: bool = False,
    timed: int = 0,
    full: dict[str, Answer] | None = None,
) -> EvaluationResult:
    """Answer all ``items`` from what each method keeps at each ratio, and from all tokens.

    Args:
        reader: the frozen Video-LLM with its video reader; its model configuration says how long
            generated answers get and which positions retained tokens take. It is told to record the vision tower's
            attention where a method needs it.
        methods: from :func:`cacovid.methods.registry.build_methods` or of your own making.
        items: questions; neighbours about the same video are cheapest.
        retentions: shares of video tokens to keep, each in (0, 1].
        seed: of random methods and the bootstrap; the result depends on nothing else that is random.
        skipped: where unusable items are set aside; without it the first one raises.
        progress: called after every item.
        store: where rows are kept as they come; what it knows is not measured again.
        swapped: measure the control of swapped questions too.
        timed: clips on which one question is timed alone.
        full: the frozen model's answers from all tokens by question, as far as known; what is missing is added,
            so whoever evaluates many policies alike asks for them once.

    Raises:
        UserError: a ratio outside (0, 1], no usable item, an oracle without evidence.
        BadItem: an unusable item, if ``skipped`` is None.
    """
    ratios = check_retentions(retentions)
    reader.tower_attention = reader.tower_attention or needs_tower_attention(methods)
    trained = [method.name for method in methods if isinstance(method, PolicyMethod) and method.name != UNTRAINED]
    names = [method.name for method in methods]
    ran = Ran(reader.video_llm.config.path, items, names, trained, ratios, seed)
    wanted = unknown(plan(items, swapped=swapped, timed=timed), store)
    outcomes = (measure(reader, methods, asked, ratios, seed, full) for asked in wanted)
    return gather(outcomes, ran, store=store, skipped=skipped, progress=progress)


def unknown(asked: Sequence[Asked], store: RowStore | None) -> list[Asked]:
    """What is still to be measured."""
    return [each for each in asked if store is None or each.item.id not in store.known]


def gather(
    outcomes: Iterable[Outcome],
    ran: Ran,
    *,
    store: RowStore | None = None,
    skipped: SkippedItems | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Keep outcomes as they come, in any order, and sum up; see :func:`evaluate`.

    Args:
        outcomes: of all items that ``store`` does not know.
    """
    measured: list[QuestionRow] = []
    known = 0 if store is None else len(store.known)
    if skipped is not None:
        skipped.use(known)
    try:
        for done, outcome in enumerate(outcomes, start=known + 1):
            _count(outcome, skipped)
            if store is None:
                measured += outcome.rows
            else:
                store.add(outcome.rows)
            if progress is not None:
                progress(done, len(ran.items))
    finally:
        if store is not None:
            store.flush()
    if skipped is not None:
        skipped.finish()
    if store is not None:
        store.finish([item.id for item in ran.items])
    return summed_up(measured if store is None else store.rows(), ran, 0 if skipped is None else skipped.skipped)


def _count(outcome: Outcome, skipped: SkippedItems | None) -> None:
    """Keep the books of unusable items."""
    if outcome.reason is None:
        if skipped is not None:
            skipped.use()
    elif skipped is None:
        raise BadItem(outcome.reason)
    else:
        skipped.add(outcome.item.id, outcome.item.video, outcome.reason)


def check_retentions(retentions: Sequence[float]) -> list[float]:
    """The distinct ratios, largest first; raises UserError for one outside (0, 1] or none at all."""
    if not retentions:
        raise UserError("no retention ratio given: give e.g. 0.25,0.1")
    for retention in retentions:
        budget(retention, 1)
    return sorted(set(retentions), reverse=True)
