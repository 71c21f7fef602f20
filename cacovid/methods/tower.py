"""The vision tower's attention, for the methods that read it."""

from cacovid.errors import NotDefined
from cacovid.methods.protocol import EvaluationCase
from cacovid.models.tower_attention import TowerAttention


def tower_attention(method: str, case: EvaluationCase) -> TowerAttention:
    """What the tower attended to in the case's clip.

    Raises:
        NotDefined: it was not recorded.
    """
    if case.encoded.tower is None:
        raise NotDefined(f"{method} needs the vision tower's attention, which was not recorded with these features")
    return case.encoded.tower
