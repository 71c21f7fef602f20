"""What an answer is worth to the objective: whether it was right, or how probable the right one was.

The probability tells combinations apart that all lead to the right letter, or all to a wrong one (docs/benchmarks.md,
"The price of training").

Shape legend: G combinations.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from cacovid.records import RolloutRecord, ScoredCombinations

Reward = Literal["answer", "probability"]


def by_worth(records: Sequence[RolloutRecord], reward: Reward) -> Sequence[RolloutRecord]:
    """``records`` with the rewards to learn from.

    Only a choice among options has a probability that is known; generated answers keep their reward.
    """
    if reward == "answer":
        return records
    return [replace(record, iterations=tuple(map(_by_probability, record.iterations))) for record in records]


def _by_probability(scored: ScoredCombinations) -> ScoredCombinations:
    """Likelihoods (G,) in place of rewards; 0 in all of them: none was computed."""
    return replace(scored, reward=scored.likelihood) if bool(scored.likelihood.any()) else scored
