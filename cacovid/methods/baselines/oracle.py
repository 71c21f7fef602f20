"""The oracle: what a method could reach that knew the answer's place."""

import torch
from torch import Tensor

from cacovid.methods.protocol import Baseline, EvaluationCase, check_evidence
from cacovid.methods.selection import fill_evenly, spread_evenly


class OracleEvidence(Baseline):
    """The asked object's own tokens first, the rest of the budget spread evenly: an upper bound."""

    name = "oracle"
    needs_evidence = True

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """(k,) ascending token indices.

        Raises:
            UserError: the question has no evidence.
        """
        check_evidence(self.name, case.item)
        evidence = torch.tensor(sorted(set(case.evidence())))
        total = case.budget(retention)
        if len(evidence) >= total:
            return evidence[spread_evenly(total, len(evidence))]
        return fill_evenly(evidence, total, case.input.grid.tokens)
