"""A goodness-of-fit check with a fixed, generous bound (draws are seeded, so it never flickers)."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from math import sqrt


def assert_follows(outcomes: Sequence[Hashable], expected: Mapping[Hashable, float]) -> None:
    """Assert that ``outcomes`` look drawn from ``expected`` (probabilities that sum to 1)."""
    assert abs(sum(expected.values()) - 1) < 1e-9
    counts = Counter(outcomes)
    possible = {outcome for outcome, probability in expected.items() if probability > 0}
    assert counts.keys() <= possible, f"impossible outcomes {list(counts.keys() - possible)[:3]}"
    total = len(outcomes)
    assert min(expected[outcome] for outcome in possible) * total >= 5, "draw more for so rare an outcome"
    statistic = sum((counts[o] - total * expected[o]) ** 2 / (total * expected[o]) for o in possible)
    freedom = len(possible) - 1
    bound = freedom + 4 * sqrt(2 * freedom)
    assert statistic < bound, f"chi-square {statistic:.1f} exceeds {bound:.1f} at {freedom} degrees of freedom"
