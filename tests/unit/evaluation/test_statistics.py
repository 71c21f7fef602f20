"""Means and standard errors over questions that share videos."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacovid.evaluation.statistics import Tally

answers = st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abcdef")), min_size=1, max_size=40)


def tally_of(values: list[tuple[float, str]]) -> Tally:
    tally = Tally()
    for value, video in values:
        tally.add(value, video)
    return tally


def test_one_question_a_video_gives_the_binomial_standard_error() -> None:
    assert Tally().mean() is None
    assert Tally().stderr() == 0.0
    tally = tally_of([(value, str(number)) for number, value in enumerate((1, 0, 0, 1, 1))])
    assert tally.mean() == pytest.approx(0.6)
    assert tally.stderr() == pytest.approx(math.sqrt(0.6 * 0.4 / 5), abs=1e-12)


def test_a_video_whose_questions_fall_together_counts_once() -> None:
    """Four videos, half of them right: two questions on each add nothing; residuals that cancel leave no error."""
    values = [(1.0, "a"), (1.0, "b"), (0.0, "c"), (0.0, "d")]
    assert tally_of(values + values).stderr() == pytest.approx(math.sqrt(0.25 / 4), abs=1e-12)
    assert tally_of([(float(right), video) for video in "abcd" for right in (True, False)]).stderr() == 0.0


@given(answers)
def test_clustered_error_is_unchanged_when_every_question_is_duplicated(values: list[tuple[float, str]]) -> None:
    once, twice = tally_of(values), tally_of(values + values)
    assert twice.count == 2 * once.count
    assert twice.mean() == pytest.approx(once.mean(), abs=1e-9)
    assert twice.stderr() == pytest.approx(once.stderr(), abs=1e-9)


@given(answers)
def test_the_clustered_error_is_that_of_the_cluster_robust_formula(values: list[tuple[float, str]]) -> None:
    mean = sum(value for value, _ in values) / len(values)
    scores = [sum(value - mean for value, video in values if video == each) for each in "abcdef"]
    assert tally_of(values).stderr() == pytest.approx(math.sqrt(sum(s * s for s in scores)) / len(values), abs=1e-9)
