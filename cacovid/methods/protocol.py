"""What a compression method is: given one encoded question and a retention ratio, a reduction of its tokens.

    VideoQuestion + Encoded -> EvaluationCase -> select(case, retention) -> k tokens    -> the answer
                                              -> reduce(case, retention) -> a Reduction -> the answer

A method of your own is any object with a name and ``select``; one that merges rows or acts within the LLM has
``reduce`` instead. One that the command line knows is a :class:`Baseline` (or :class:`ReducingBaseline`) in a file of
``baselines`` and a line in the registry.

Shape legend: N video tokens, T frames (temporal steps), k retained tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from cacovid.errors import UserError
from cacovid.methods.selection import budget
from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import Encoded
from cacovid.models.reduction import Reduction
from cacovid.records import PolicyInput, VideoQuestion
from cacovid.seeding import generator


@dataclass(frozen=True, eq=False)
class EvaluationCase:
    """One question with its encoded video: everything that a method may look at."""

    item: VideoQuestion
    encoded: Encoded
    seed: int

    @cached_property
    def input(self) -> PolicyInput:
        """What policies read."""
        return self.encoded.policy_input()

    def budget(self, retention: float) -> int:
        """Retained tokens k: the same for every method."""
        return budget(retention, self.input.grid.tokens)

    def evidence(self) -> tuple[int, ...]:
        """The item's evidence (empty if unknown), checked against the model's grid.

        Raises:
            UserError: cells beyond the grid: the table was made for another grid.
        """
        tokens = self.input.grid.tokens
        beyond = [cell for cell in (*self.item.evidence, *self.item.other_objects) if cell >= tokens]
        if beyond:
            raise UserError(
                f"question {self.item.id!r}: token cell {beyond[0]} lies beyond the {tokens} tokens of the model's "
                f"grid {tuple(self.input.grid)}; use a table made for this grid or drop its evidence columns"
            )
        return self.item.evidence

    def generator(self, method: str, retention: float) -> torch.Generator:
        """Random draws that depend on seed, method, question and ratio alone."""
        return generator(self.seed, "evaluation", method, self.item.id, repr(retention))


class SelectionMethod(Protocol):
    """The whole interface of a method that chooses tokens; one instance sees many cases, one after the other."""

    @property
    def name(self) -> str:
        """The method's row in tables."""
        ...

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """(k,) int64 ascending token indices on the CPU, exactly ``case.budget(retention)`` of them."""
        ...


@runtime_checkable
class ReducingMethod(Protocol):
    """The interface of a method that merges tokens or acts within the LLM."""

    @property
    def name(self) -> str:
        """The method's row in tables."""
        ...

    def reduce(self, case: EvaluationCase, retention: float) -> Reduction:
        """At most ``case.budget(retention)`` tokens as mean over the LLM's layers.

        Raises:
            NotDefined: the method's definition does not cover this model, clip or budget.
        """
        ...


Method = SelectionMethod | ReducingMethod


@runtime_checkable
class ScoringMethod(Protocol):
    """A method that scores tokens; its question-awareness can be measured."""

    def token_scores(self, case: EvaluationCase) -> Tensor:
        """(N,) higher for tokens that are kept longer."""
        ...


class TrainingFree(ABC):
    """A method without training that a user can name."""

    name: ClassVar[str]
    needs_evidence: ClassVar[bool] = False  # reads the answer's place: for tables of known evidence alone
    needs_tower_attention: ClassVar[bool] = False  # reads what the vision tower looked at, which costs a recording

    @classmethod
    def for_model(cls, video_llm: VideoLLM) -> Self:
        """The method for questions encoded by ``video_llm``."""
        return cls()


class Baseline(TrainingFree):
    """One that chooses tokens by what it reads before the LLM: servers can run it too."""

    @abstractmethod
    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """As :meth:`SelectionMethod.select`."""


class ReducingBaseline(TrainingFree):
    """One that merges tokens or acts within the LLM."""

    @abstractmethod
    def reduce(self, case: EvaluationCase, retention: float) -> Reduction:
        """As :meth:`ReducingMethod.reduce`."""


def needs_tower_attention(methods: Sequence[Method]) -> bool:
    """Whether the vision tower has to be listened to for any of them."""
    return any(isinstance(method, TrainingFree) and method.needs_tower_attention for method in methods)


def reduction_by(method: Method, case: EvaluationCase, retention: float) -> Reduction:
    """What ``method`` makes of one case, if it keeps to the protocol."""
    if isinstance(method, ReducingMethod):
        reduction = method.reduce(case, retention)
        keep = reduction.keep
        assert 0 < len(keep) <= case.input.grid.tokens, f"{method.name} kept {len(keep)} tokens"
    else:
        keep = method.select(case, retention)
        assert keep.shape == (case.budget(retention),), f"{method.name} kept {tuple(keep.shape)} tokens"
        reduction = Reduction(keep)
    assert bool((keep[1:] > keep[:-1]).all()), f"{method.name}: indices are not ascending"
    return reduction


def check_evidence(method: str, item: VideoQuestion) -> None:
    """Raises UserError for a question without the evidence that ``method`` needs."""
    if not item.evidence:
        raise UserError(
            f"method {method!r} needs evidence, question {item.id!r} has none: "
            "fill the table's column 'evidence' or leave the method out"
        )
