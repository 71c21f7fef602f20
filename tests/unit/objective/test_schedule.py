import pytest

from cacovid.objective.schedule import learning_rate_multiplier


@pytest.mark.parametrize("schedule", ["cosine", "flat-linear"])
def test_warm_up_is_linear_and_never_zero(schedule):
    values = [learning_rate_multiplier(schedule, step, 1000, 10) for step in range(10)]
    assert values == pytest.approx([(step + 1) / 10 for step in range(10)])


def test_flat_linear_stays_for_half_the_run_and_ends_at_five_percent():
    values = {step: learning_rate_multiplier("flat-linear", step, 100, 0) for step in (0, 50, 75, 100, 150)}
    assert values == pytest.approx({0: 1, 50: 1, 75: 0.525, 100: 0.05, 150: 0.05})


def test_cosine_falls_from_the_end_of_the_warm_up_to_zero():
    values = {step: learning_rate_multiplier("cosine", step, 110, 10) for step in (10, 60, 110, 200)}
    assert values == pytest.approx({10: 1, 60: 0.5, 110: 0, 200: 0})


@pytest.mark.parametrize("schedule", ["cosine", "flat-linear"])
def test_runs_shorter_than_the_warm_up_are_defined(schedule):
    assert all(0 < learning_rate_multiplier(schedule, step, 3, 10) <= 1 for step in range(3))
