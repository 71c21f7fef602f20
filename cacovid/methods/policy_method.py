"""A trained (or untrained) policy as a method."""

from torch import Tensor

from cacovid.config import SelectionConfig
from cacovid.methods.protocol import EvaluationCase
from cacovid.methods.selection import select_tokens
from cacovid.policy.base import CompressionPolicy, PolicyOutput


class PolicyMethod:
    """A compression policy with its selection rule."""

    def __init__(self, name: str, policy: CompressionPolicy, selection: SelectionConfig) -> None:
        self.name = name
        self.policy = policy
        self.selection = selection

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """The tokens that ``selection`` retains."""
        output = self._output(case)
        return select_tokens(output.token_scores[0], output.frame_scores[0], case.input.grid, retention, self.selection)

    def token_scores(self, case: EvaluationCase) -> Tensor:
        """(N,) keep minus drop logit."""
        return self._output(case).token_scores[0].float().cpu()

    def _output(self, case: EvaluationCase) -> PolicyOutput:
        return self.policy.logits([case.input])
