"""One question by every method at every ratio: what is measured before anything is summed up.

    case ──all tokens─────────────────────────────────► the full model's answer
      ├──each ratio: every method's reduction──batches──► an Answer each, or why it is not defined
      ├──the same, reduced for another question──────────► control: what reading the question is worth
      └──methods that score tokens────────────────────────► question-awareness

Selections of equally many tokens are answered in one batch, and tokens that several methods agree on are answered
once; merged rows and steps within the LLM are answered alone.

Shape legend: M distinct selections of one size, k retained tokens.
"""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cacovid.answering.scoring import score, score_reduction
from cacovid.errors import NotDefined
from cacovid.evaluation.awareness import question_awareness
from cacovid.evaluation.rows import FULL, Cell, QuestionRow
from cacovid.methods.protocol import EvaluationCase, Method, ReducingMethod, ScoringMethod, reduction_by
from cacovid.models.adapter import VideoLLM
from cacovid.models.reduction import Reduction
from cacovid.records import VideoQuestion


@dataclass(frozen=True)
class Answer:
    """What one method's reduction of one question led to."""

    text: str  # the letter or the generated text
    reward: float
    recall: float | None  # of the evidence; None without evidence, and of methods that do more than choose tokens
    input_share: float  # of the video tokens, that enter the LLM
    mean_share: float  # average over its layers
    seconds: float  # of reducing


@dataclass(frozen=True)
class Measured:
    """One question's figures."""

    full: Answer  # from all tokens
    answers: dict[Cell, Answer] = field(default_factory=dict)
    reasons: dict[Cell, str] = field(default_factory=dict)  # why there is no answer
    awareness: dict[str, float | None] = field(default_factory=dict)  # by scoring method
    swapped: dict[Cell, float] = field(default_factory=dict)  # rewards of what was kept for another question

    def rows(self, item: VideoQuestion) -> list[QuestionRow]:
        """All of it, the full model's answer first."""
        cells = {(FULL, 1.0): self.full, **self.answers}
        return [
            QuestionRow(
                question=item.id,
                video=item.video,
                method=method,
                retention=ratio,
                reward=answer.reward,
                answer=answer.text,
                undefined=None,
                recall=answer.recall,
                input_share=answer.input_share,
                mean_share=answer.mean_share,
                awareness=self.awareness.get(method),
                swapped_reward=self.swapped.get((method, ratio)),
                compress_ms=1000 * answer.seconds,
            )
            for (method, ratio), answer in cells.items()
        ] + [
            QuestionRow(item.id, item.video, *cell, None, None, reason, None, None, None, self.awareness.get(cell[0]))
            for cell, reason in self.reasons.items()
        ]


def measure_question(
    video_llm: VideoLLM,
    methods: Sequence[Method],
    case: EvaluationCase,
    ratios: Sequence[float],
    other: EvaluationCase | None = None,
    full: dict[str, Answer] | None = None,
) -> Measured:
    """Every method at every ratio.

    Args:
        other: another question about the same clip, to compress for instead, as a control.
        full: the answers from all tokens that are known, by question; this one's is taken from there, or added.

    Raises:
        BadItem: an unusable question.
    """
    full = {} if full is None else full
    if case.item.id not in full:
        every = torch.arange(case.input.grid.tokens)[None]
        text, reward = _answer_selections(video_llm, case, every)[0]
        full[case.item.id] = Answer(text, reward, None, 1.0, 1.0, 0.0)
    measured = Measured(full[case.item.id])
    for ratio in ratios:
        _measure_ratio(video_llm, methods, case, ratio, measured)
        if other is not None:
            measured.swapped.update(_swapped(video_llm, methods, case, other, ratio, measured))
    for method in methods:
        if isinstance(method, ScoringMethod):
            measured.awareness[method.name] = question_awareness(case, method.token_scores(case))
    return measured


def _measure_ratio(
    video_llm: VideoLLM, methods: Sequence[Method], case: EvaluationCase, ratio: float, measured: Measured
) -> None:
    """Add one ratio's answers to ``measured``."""
    evidence, whole = frozenset(case.evidence()), case.input.grid.tokens
    choosing = {method.name for method in methods if not isinstance(method, ReducingMethod)}
    if case.budget(ratio) == whole:  # nothing to select
        for method in methods:
            recall = 1.0 if evidence and method.name in choosing else None
            measured.answers[method.name, ratio] = replace(measured.full, recall=recall)
        return
    reductions, seconds, reasons = reduce_by_all(methods, case, ratio)
    answered, undefined = _answers(video_llm, case, reductions)
    measured.reasons.update({(name, ratio): reason for name, reason in {**reasons, **undefined}.items()})
    for name, (text, reward, tokens) in answered.items():
        kept = evidence & set(reductions[name].keep.tolist())
        recall = len(kept) / len(evidence) if evidence and name in choosing else None
        shares = tokens[0] / whole, sum(tokens) / len(tokens) / whole
        measured.answers[name, ratio] = Answer(text, reward, recall, *shares, seconds[name])


def _swapped(
    video_llm: VideoLLM,
    methods: Sequence[Method],
    case: EvaluationCase,
    other: EvaluationCase,
    ratio: float,
    measured: Measured,
) -> dict[Cell, float]:
    """Rewards of ``case`` from what was kept for ``other``, of the methods that are defined."""
    if case.budget(ratio) == case.input.grid.tokens:
        return {(method.name, ratio): measured.full.reward for method in methods}
    # Random draws are this question's own: they are not what is swapped.
    asked = replace(other, item=replace(other.item, id=case.item.id))
    reductions, _, _ = reduce_by_all(methods, asked, ratio)
    answered, _ = _answers(video_llm, case, reductions)
    return {(name, ratio): reward for name, (_, reward, _) in answered.items()}


def reduce_by_all(
    methods: Sequence[Method], case: EvaluationCase, ratio: float
) -> tuple[dict[str, Reduction], dict[str, float], dict[str, str]]:
    """The reductions that are defined and the seconds they took, and why the others are not, by method."""
    found: dict[str, Reduction] = {}
    seconds: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for method in methods:
        fresh = replace(case)  # what was computed at another ratio would make the time look too short
        started = time.perf_counter()
        try:
            found[method.name] = reduction_by(method, fresh, ratio)
        except NotDefined as error:
            reasons[method.name] = str(error)
        else:
            seconds[method.name] = time.perf_counter() - started
    return found, seconds, reasons


def _answers(
    video_llm: VideoLLM, case: EvaluationCase, reductions: dict[str, Reduction]
) -> tuple[dict[str, tuple[str, float, list[int]]], dict[str, str]]:
    """Answer, reward and tokens at each LLM layer by method, and why there are none."""
    answered: dict[str, tuple[str, float, list[int]]] = {}
    reasons: dict[str, str] = {}
    by_size: dict[int, list[str]] = defaultdict(list)
    for name, reduction in reductions.items():
        if reduction.selects:
            by_size[len(reduction.keep)].append(name)
            continue
        try:
            scores, tokens = score_reduction(video_llm, case.encoded, case.item, reduction)
        except NotDefined as error:
            reasons[name] = str(error)
        else:
            answered[name] = scores.answers[0], float(scores.reward[0]), tokens
    for size, names in by_size.items():
        found = _answer_selections(video_llm, case, torch.stack([reductions[name].keep for name in names]))
        answered |= {name: (*answer, [size]) for name, answer in zip(names, found, strict=True)}
    return answered, reasons


def _answer_selections(video_llm: VideoLLM, case: EvaluationCase, keep: Tensor) -> list[tuple[str, float]]:
    """Answers and rewards of (M, k) selections; equal ones are answered once."""
    distinct, place = keep.unique(dim=0, return_inverse=True)
    scores = score(video_llm, case.encoded, case.item, distinct.to(video_llm.device))
    return [(scores.answers[row], float(scores.reward[row])) for row in place.tolist()]
