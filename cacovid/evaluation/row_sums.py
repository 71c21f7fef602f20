"""Sums over rows of single questions."""

from collections.abc import Callable, Iterable

from cacovid.evaluation.rows import QuestionRow
from cacovid.evaluation.statistics import Tally


def reward(row: QuestionRow) -> float | None:
    """None where the method is not defined."""
    return row.reward


def known_reward(row: QuestionRow) -> float:
    """Of a row that is defined."""
    assert row.reward is not None
    return row.reward


def tally(rows: Iterable[QuestionRow], value: Callable[[QuestionRow], float | None]) -> Tally:
    """Of the rows that have the value."""
    summed = Tally()
    for row in rows:
        found = value(row)
        if found is not None:
            summed.add(found, row.video)
    return summed


def mean(summed: Tally) -> float:
    """Of at least one value."""
    found = summed.mean()
    assert found is not None
    return found
