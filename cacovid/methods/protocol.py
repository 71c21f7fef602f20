"""What a selection method is: given one encoded question and a retention ratio, the tokens to keep.

Shape legend: N video tokens, T frames (temporal steps), k retained tokens.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from cacovid.config import SelectionConfig
from cacovid.methods.selection import budget, select_tokens
from cacovid.models.encoded import Encoded
from cacovid.policy.base import CompressionPolicy, PolicyOutput
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

    def generator(self, method: str, retention: float) -> torch.Generator:
        """Random draws that depend on seed, method, question and ratio alone."""
        return generator(self.seed, "evaluation", method, self.item.id, repr(retention))


class SelectionMethod(Protocol):
    """The whole interface of a method; one instance sees many cases, one after the other."""

    @property
    def name(self) -> str:
        """The method's row in tables."""
        ...

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """(k,) int64 ascending token indices on the CPU, exactly ``case.budget(retention)`` of them."""
        ...


@runtime_checkable
class ScoringMethod(Protocol):
    """A method that scores tokens; its question-awareness can be measured."""

    @property
    def name(self) -> str:
        """The method's row in tables."""
        ...

    def token_scores(self, case: EvaluationCase) -> Tensor:
        """(N,) higher for tokens that are kept longer."""
        ...


class PolicyMethod:
    """A compression policy with its selection rule."""

    def __init__(self, name: str, policy: CompressionPolicy, selection: SelectionConfig) -> None:
        self.name = name
        self.policy = policy
        self.selection = selection
        self._last: tuple[EvaluationCase, PolicyOutput] | None = None

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """The tokens that ``selection`` retains."""
        output = self._output(case)
        return select_tokens(output.token_scores[0], output.frame_scores[0], case.input.grid, retention, self.selection)

    def token_scores(self, case: EvaluationCase) -> Tensor:
        """(N,) keep minus drop logit."""
        return self._output(case).token_scores[0].float().cpu()

    def _output(self, case: EvaluationCase) -> PolicyOutput:
        """The policy runs once a case, however many ratios are asked for."""
        if self._last is None or self._last[0] is not case:
            self._last = (case, self.policy.evaluate([case.input]))
        return self._last[1]
