"""Paired differences and their p against worked numbers and slow references."""

import math

import pytest

from cacovid.evaluation.comparison import Paired, bootstrap_p, compare, mcnemar_p
from cacovid.evaluation.statistics import Tally


def paired(values: list[tuple[str, float, float]], times: int = 1) -> Paired:
    return Paired(*(list(column) * times for column in zip(*values, strict=True)))


VALUES = [("a", 1.0, 0.0), ("a", 1.0, 1.0), ("b", 0.0, 1.0), ("c", 1.0, 0.0), ("d", 1.0, 0.0), ("d", 1.0, 0.0)]


def test_the_paired_difference_and_its_clustered_error_are_those_worked_by_hand() -> None:
    """Differences a: 1, 0; b: -1; c: 1; d: 1, 1. Mean 1/2; residuals by video: 0, -3/2, 1/2, 1."""
    found = compare({"x": ("rival", paired(VALUES))}, 0)["x"]
    assert found.rival == "rival"
    assert found.difference == pytest.approx(0.5)
    assert found.stderr == pytest.approx(math.sqrt(2.25 + 0.25 + 1) / 6, abs=1e-12)
    assert found.mcnemar_p == pytest.approx(0.375)  # 4 better, 1 worse: 2 * (1 + 5) / 32


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 2**5),
        (3, 3, 1.0),
        (12, 3, 2 * (1 + 15 + 105 + 455) / 2**15),
        (2, 10, 2 * (1 + 12 + 66) / 2**12),
        (60, 30, 2 * sum(math.comb(90, k) for k in range(31)) / 2**90),
        (900, 700, 2 * sum(math.comb(1600, k) for k in range(701)) / 2**1600),
    ],
)
def test_mcnemars_p_is_the_exact_binomial_one(better: int, worse: int, p: float) -> None:
    ours = [1.0] * better + [0.0] * worse + [1.0, 0.0]
    theirs = [0.0] * better + [1.0] * worse + [1.0, 0.0]
    assert mcnemar_p(ours, theirs) == pytest.approx(p, rel=1e-9)
    assert mcnemar_p(theirs, ours) == pytest.approx(p, rel=1e-9)


def differences(of: list[float]) -> Tally:
    tally = Tally()
    for number, value in enumerate(of):
        tally.add(value, str(number))
    return tally


def test_the_clustered_bootstrap_agrees_with_all_resamples_counted_out() -> None:
    """Videos with differences 1, 1, 0, -1: of 4^4 resamples those count whose mean is off by at least the mean, 1/4."""
    values = [1.0, 1.0, 0.0, -1.0]
    sums = [a + b + c + d for a in values for b in values for c in values for d in values]
    exact = sum(abs(total - 1) >= 1 for total in sums) / 4**4
    assert bootstrap_p([differences(values)], 0)[0] == pytest.approx(exact, abs=0.02)


def test_the_bootstrap_is_sure_of_large_differences_and_unsure_of_none() -> None:
    sure, unsure, none = differences([1.0] * 30 + [0.0] * 30), differences([1.0, -1.0] * 20), differences([0.0] * 9)
    found = bootstrap_p([sure, unsure, none], 3)
    assert found[0] == pytest.approx(1 / 10_001)
    assert found[1:] == [1.0, 1.0]
    assert found == bootstrap_p([sure, unsure, none], 3)


def test_duplicating_every_question_leaves_what_is_clustered_by_video_unchanged() -> None:
    once, twice = (compare({"x": ("rival", paired(VALUES, times))}, 0)["x"] for times in (1, 2))
    assert twice.difference == pytest.approx(once.difference, abs=1e-9)
    assert twice.stderr == pytest.approx(once.stderr, abs=1e-9)
    assert twice.bootstrap_p == once.bootstrap_p
    assert twice.mcnemar_p < once.mcnemar_p  # counts questions
