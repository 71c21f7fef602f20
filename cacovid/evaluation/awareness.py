"""Question-awareness: are the asked object's tokens scored above those of the other objects?

A policy that only tells objects from background reaches 0.5, one that reads the question 1.
"""

import torch
from torch import Tensor

from cacovid.methods.protocol import EvaluationCase


def area_under_curve(positive: Tensor, negative: Tensor) -> float:
    """Probability that a positive score exceeds a negative one, ties counting half.

    Args:
        positive: (P,) finite scores, P >= 1.
        negative: (M,) finite scores, M >= 1.
    """
    assert len(positive), "no positive scores"
    assert len(negative), "no negative scores"
    ordered = negative.double().sort().values
    wanted = positive.double().contiguous()
    below = torch.searchsorted(ordered, wanted, right=False)
    up_to = torch.searchsorted(ordered, wanted, right=True)
    return float((below + up_to).double().mean() / (2 * len(ordered)))


def question_awareness(case: EvaluationCase, token_scores: Tensor) -> float | None:
    """AUC of the asked object's (N,) token scores against other objects'; None where either is unknown."""
    evidence = case.evidence()
    others = case.item.other_objects
    if not evidence or not others:
        return None
    return area_under_curve(token_scores[list(evidence)], token_scores[list(others)])
