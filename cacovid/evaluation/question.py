"""One question by every method at every ratio: what is measured before anything is summed up.

    case ──all tokens─────────────────────────────────► reward of the full model
      └──each ratio: every method's reduction──batches──► an Answer each, or why it is not defined
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
from cacovid.methods.protocol import EvaluationCase, Method, ReducingMethod, ScoringMethod, reduction_by
from cacovid.models.adapter import VideoLLM
from cacovid.models.reduction import Reduction

Cell = tuple[str, float]  # method, retention


@dataclass(frozen=True)
class Answer:
    """What one method's reduction of one question was worth."""

    reward: float
    recall: float | None  # of the evidence; None without evidence, and of methods that do more than choose tokens
    input_share: float  # of the video tokens, that enter the LLM
    mean_share: float  # average over its layers
    seconds: float  # of reducing


@dataclass(frozen=True)
class Measured:
    """One question's figures."""

    full: float  # reward from all tokens
    answers: dict[Cell, Answer] = field(default_factory=dict)
    reasons: dict[Cell, str] = field(default_factory=dict)  # why there is no answer
    awareness: dict[str, float | None] = field(default_factory=dict)  # by scoring method


def measure_question(
    video_llm: VideoLLM, methods: Sequence[Method], case: EvaluationCase, ratios: Sequence[float]
) -> Measured:
    """Every method at every ratio.

    Raises:
        BadItem: an unusable question.
    """
    measured = Measured(_rewards(video_llm, case, torch.arange(case.input.grid.tokens)[None])[0])
    for ratio in ratios:
        _measure_ratio(video_llm, methods, case, ratio, measured)
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
            measured.answers[method.name, ratio] = Answer(measured.full, recall, 1.0, 1.0, 0.0)
        return
    reductions, seconds = _reductions(methods, case, ratio, measured)
    for name, (reward, tokens) in _answers(video_llm, case, ratio, reductions, measured).items():
        kept = evidence & set(reductions[name].keep.tolist())
        recall = len(kept) / len(evidence) if evidence and name in choosing else None
        shares = tokens[0] / whole, sum(tokens) / len(tokens) / whole
        measured.answers[name, ratio] = Answer(reward, recall, *shares, seconds[name])


def _reductions(
    methods: Sequence[Method], case: EvaluationCase, ratio: float, measured: Measured
) -> tuple[dict[str, Reduction], dict[str, float]]:
    """The reductions that are defined and the seconds they took, by method."""
    found: dict[str, Reduction] = {}
    seconds: dict[str, float] = {}
    for method in methods:
        fresh = replace(case)  # what was computed at another ratio would make the time look too short
        started = time.perf_counter()
        try:
            found[method.name] = reduction_by(method, fresh, ratio)
        except NotDefined as error:
            measured.reasons[method.name, ratio] = str(error)
        else:
            seconds[method.name] = time.perf_counter() - started
    return found, seconds


def _answers(
    video_llm: VideoLLM, case: EvaluationCase, ratio: float, reductions: dict[str, Reduction], measured: Measured
) -> dict[str, tuple[float, list[int]]]:
    """Reward and tokens at each LLM layer of those that are defined, by method."""
    answered: dict[str, tuple[float, list[int]]] = {}
    by_size: dict[int, list[str]] = defaultdict(list)
    for name, reduction in reductions.items():
        if reduction.selects:
            by_size[len(reduction.keep)].append(name)
            continue
        try:
            scores, tokens = score_reduction(video_llm, case.encoded, case.item, reduction)
        except NotDefined as error:
            measured.reasons[name, ratio] = str(error)
        else:
            answered[name] = float(scores.reward[0]), tokens
    for size, names in by_size.items():
        rewards = _rewards(video_llm, case, torch.stack([reductions[name].keep for name in names]))
        answered |= {name: (reward, [size]) for name, reward in zip(names, rewards, strict=True)}
    return answered


def _rewards(video_llm: VideoLLM, case: EvaluationCase, keep: Tensor) -> list[float]:
    """Rewards of (M, k) selections; equal ones are answered once."""
    distinct, place = keep.unique(dim=0, return_inverse=True)
    scores = score(video_llm, case.encoded, case.item, distinct.to(video_llm.device))
    return [float(value) for value in scores.reward[place]]
