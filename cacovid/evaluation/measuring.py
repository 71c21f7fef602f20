"""Every method at every retention ratio on the same questions, with the same budgets.

    item ──reader──► case ──all tokens───────────────────────────────► reward ──► full accuracy
                       └──each ratio: k tokens of every method──batch──► rewards ──► accuracy, evidence recall
                       └──methods that score tokens──────────────────────────────► question-awareness

An item is decoded and encoded once. All methods with one budget are answered in one batch, and
tokens that several methods agree on are answered once. Nothing of an item counts before all of it is
measured; the sums become an ``EvaluationResult``, which ``reports`` writes.

Shape legend: N video tokens, k retained tokens, M distinct selections of one budget.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cacovid.answering.scoring import score
from cacovid.data.reader import ItemReader
from cacovid.data.skipped import SkippedItems
from cacovid.errors import BadItem, UserError
from cacovid.evaluation.awareness import question_awareness
from cacovid.evaluation.result import EvaluationResult, Row
from cacovid.evaluation.statistics import Tally
from cacovid.methods.policy_method import PolicyMethod
from cacovid.methods.protocol import EvaluationCase, ScoringMethod, SelectionMethod
from cacovid.methods.registry import UNTRAINED
from cacovid.methods.selection import budget
from cacovid.records import VideoQuestion

Progress = Callable[[int, int], None]  # items done, items in all
Cell = tuple[str, float]  # method, retention


@dataclass
class _Totals:
    full: Tally = field(default_factory=Tally)
    accuracy: dict[Cell, Tally] = field(default_factory=lambda: defaultdict(Tally))
    recall: dict[Cell, Tally] = field(default_factory=lambda: defaultdict(Tally))
    awareness: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))


def evaluate(
    reader: ItemReader,
    methods: Sequence[SelectionMethod],
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
            generated answers get and which positions retained tokens take.
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
    methods: Sequence[SelectionMethod],
    case: EvaluationCase,
    ratios: Sequence[float],
    totals: _Totals,
) -> None:
    """One item; nothing is counted if it turns out to be unusable."""
    evidence = frozenset(case.evidence())
    tokens = case.input.grid.tokens
    full = _rewards(reader, case, torch.arange(tokens)[None])[0]
    measured: list[tuple[Cell, float, float | None]] = []
    for ratio in ratios:
        if case.budget(ratio) == tokens:  # nothing to select
            kept, rewards = [torch.arange(tokens)] * len(methods), [full] * len(methods)
        else:
            kept = [_checked(method, case, ratio) for method in methods]
            rewards = _rewards(reader, case, torch.stack(kept))
        for method, chosen, reward in zip(methods, kept, rewards, strict=True):
            recall = len(evidence & set(chosen.tolist())) / len(evidence) if evidence else None
            measured.append(((method.name, ratio), reward, recall))
    awareness = [
        (method.name, question_awareness(case, method.token_scores(case)))
        for method in methods
        if isinstance(method, ScoringMethod)
    ]
    video = case.item.video
    totals.full.add(full, video)
    for cell, reward, recall in measured:
        totals.accuracy[cell].add(reward, video)
        if recall is not None:
            totals.recall[cell].add(recall, video)
    for name, area in awareness:
        if area is not None:
            totals.awareness[name].add(area, video)


def _checked(method: SelectionMethod, case: EvaluationCase, retention: float) -> Tensor:
    """(k,) the method's tokens, if it keeps to the budget and the order."""
    kept = method.select(case, retention)
    assert kept.shape == (case.budget(retention),), f"{method.name} kept {tuple(kept.shape)} tokens"
    assert bool((kept[1:] > kept[:-1]).all()), f"{method.name}: indices are not ascending"
    return kept


def _rewards(reader: ItemReader, case: EvaluationCase, keep: Tensor) -> list[float]:
    """Rewards of (M, k) selections; equal ones are answered once."""
    distinct, place = keep.unique(dim=0, return_inverse=True)
    scores = score(reader.video_llm, case.encoded, case.item, distinct.to(reader.video_llm.device))
    return [float(value) for value in scores.reward[place]]


def _result(
    reader: ItemReader,
    methods: Sequence[SelectionMethod],
    ratios: Sequence[float],
    totals: _Totals,
    seed: int,
    set_aside: int,
) -> EvaluationResult:
    rows = []
    for method in methods:
        for ratio in ratios:
            cell = (method.name, ratio)
            tally = totals.accuracy[cell]
            accuracy = tally.mean()
            assert accuracy is not None
            recall = totals.recall[cell].mean()
            rows.append(Row(method.name, ratio, accuracy, tally.stderr(), recall, tally.count))
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
    )
