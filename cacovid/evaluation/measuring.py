"""Every method at every retention ratio on the same questions, with the same budgets.

    item ──reader──► case ──all tokens─────────────────────────────────► reward ──► full accuracy
                       └──each ratio: every method's reduction──batches──► rewards ──► accuracy, shares, recall
                       └──methods that score tokens────────────────────────────────► question-awareness

An item is decoded and encoded once. Selections of equally many tokens are answered in one batch, and
tokens that several methods agree on are answered once; merged rows and steps within the LLM are answered
alone. Nothing of an item counts before all of it is measured; the sums become an ``EvaluationResult``,
which ``reports`` writes.

Shape legend: N video tokens, k retained tokens, M distinct selections of one size.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cacovid.answering.scoring import score, score_reduction
from cacovid.data.reader import ItemReader
from cacovid.data.skipped import SkippedItems
from cacovid.errors import BadItem, NotDefined, UserError
from cacovid.evaluation.awareness import question_awareness
from cacovid.evaluation.result import EvaluationResult, Row, Undefined
from cacovid.evaluation.statistics import Tally
from cacovid.methods.policy_method import PolicyMethod
from cacovid.methods.protocol import EvaluationCase, Method, ScoringMethod, TrainingFree, reduction_by
from cacovid.methods.registry import UNTRAINED
from cacovid.methods.selection import budget
from cacovid.models.reduction import Reduction
from cacovid.records import VideoQuestion

Progress = Callable[[int, int], None]  # items done, items in all
Cell = tuple[str, float]  # method, retention


@dataclass
class _Answer:
    """What one method's reduction of one question was worth."""

    reward: float
    recall: float | None  # of the evidence; None without evidence, or where not all kept tokens are the clip's own
    input_share: float
    mean_share: float
    seconds: float


@dataclass
class _Totals:
    full: Tally = field(default_factory=Tally)
    answers: dict[Cell, list[tuple[str, _Answer]]] = field(default_factory=lambda: defaultdict(list))  # by video
    reasons: dict[Cell, list[str]] = field(default_factory=lambda: defaultdict(list))
    awareness: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))


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
            _measure(reader, methods, EvaluationCase(item, reader.encode(item), seed), ratios, totals)
        except BadItem as error:
            if skipped is None:
                raise
            skipped.add(item.id, item.video, str(error))
        else:
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


def _measure(
    reader: ItemReader,
    methods: Sequence[Method],
    case: EvaluationCase,
    ratios: Sequence[float],
    totals: _Totals,
) -> None:
    """One item; nothing is counted if it turns out to be unusable."""
    evidence = frozenset(case.evidence())
    full = _rewards(reader, case, torch.arange(case.input.grid.tokens)[None])[0]
    answers: dict[Cell, _Answer] = {}
    reasons: dict[Cell, str] = {}
    for ratio in ratios:
        if case.budget(ratio) == case.input.grid.tokens:  # nothing to select
            recall = 1.0 if evidence else None
            answers |= {(method.name, ratio): _Answer(full, recall, 1.0, 1.0, 0.0) for method in methods}
            continue
        found, undefined = _reductions(methods, case, ratio)
        reasons |= {(name, ratio): reason for name, reason in undefined.items()}
        answered, undefined = _answers(reader, case, {name: reduction for name, (reduction, _) in found.items()})
        reasons |= {(name, ratio): reason for name, reason in undefined.items()}
        for name, (reward, tokens) in answered.items():
            reduction, seconds = found[name]
            kept = evidence & set(reduction.keep.tolist())
            recall = len(kept) / len(evidence) if evidence and reduction.selects else None
            shares = tokens[0] / case.input.grid.tokens, sum(tokens) / len(tokens) / case.input.grid.tokens
            answers[name, ratio] = _Answer(reward, recall, *shares, seconds)
    awareness = [
        (method.name, question_awareness(case, method.token_scores(case)))
        for method in methods
        if isinstance(method, ScoringMethod)
    ]
    video = case.item.video
    totals.full.add(full, video)
    for cell, answer in answers.items():
        totals.answers[cell].append((video, answer))
    for cell, reason in reasons.items():
        totals.reasons[cell].append(reason)
    for name, area in awareness:
        if area is not None:
            totals.awareness[name].add(area, video)


def _reductions(
    methods: Sequence[Method], case: EvaluationCase, ratio: float
) -> tuple[dict[str, tuple[Reduction, float]], dict[str, str]]:
    """By method: its reduction and the seconds it took, or why it has none."""
    found: dict[str, tuple[Reduction, float]] = {}
    undefined: dict[str, str] = {}
    for method in methods:
        fresh = replace(case)  # what was computed at another ratio would make the time look too short
        started = time.perf_counter()
        try:
            found[method.name] = reduction_by(method, fresh, ratio), time.perf_counter() - started
        except NotDefined as error:
            undefined[method.name] = str(error)
    return found, undefined


def _answers(
    reader: ItemReader, case: EvaluationCase, reductions: dict[str, Reduction]
) -> tuple[dict[str, tuple[float, list[int]]], dict[str, str]]:
    """By method: its reward and the tokens at each LLM layer, or why it has none."""
    answered: dict[str, tuple[float, list[int]]] = {}
    undefined: dict[str, str] = {}
    by_size: dict[int, list[str]] = defaultdict(list)
    for name, reduction in reductions.items():
        if reduction.selects:
            by_size[len(reduction.keep)].append(name)
            continue
        try:
            scores, tokens = score_reduction(reader.video_llm, case.encoded, case.item, reduction)
        except NotDefined as error:
            undefined[name] = str(error)
        else:
            answered[name] = float(scores.reward[0]), tokens
    for size, names in by_size.items():
        rewards = _rewards(reader, case, torch.stack([reductions[name].keep for name in names]))
        answered |= {name: (reward, [size]) for name, reward in zip(names, rewards, strict=True)}
    return answered, undefined


def _rewards(reader: ItemReader, case: EvaluationCase, keep: Tensor) -> list[float]:
    """Rewards of (M, k) selections; equal ones are answered once."""
    distinct, place = keep.unique(dim=0, return_inverse=True)
    scores = score(reader.video_llm, case.encoded, case.item, distinct.to(reader.video_llm.device))
    return [float(value) for value in scores.reward[place]]


def _row(method: str, ratio: float, answers: Sequence[tuple[str, _Answer]]) -> Row:
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
