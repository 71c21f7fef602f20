import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cacovid.sampling.capping import cap_probabilities


def slow_cap(row: list[float], cap: float) -> list[float]:
    """Cap, hand the excess to the uncapped in proportion, repeat until nothing moves."""
    cap = max(cap, 1 / len(row))
    values = [value / sum(row) for value in row]
    capped: set[int] = set()
    while over := {i for i, value in enumerate(values) if value > cap * (1 + 1e-12) and i not in capped}:
        capped |= over
        free = sum(values[i] for i in range(len(row)) if i not in capped)
        left = 1 - cap * len(capped)
        values = [cap if i in capped else value * left / free for i, value in enumerate(values)]
    return values


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=12), st.floats(0.01, 1.2))
def test_closed_form_equals_repeated_redistribution(row, cap):
    row = torch.tensor(row, dtype=torch.float64)
    result = cap_probabilities(row / row.sum(), cap)
    torch.testing.assert_close(
        result, torch.tensor(slow_cap(row.tolist(), cap), dtype=torch.float64), atol=1e-9, rtol=0
    )
    assert float(result.sum()) == pytest.approx(1)
    assert float(result.max()) <= max(cap, 1 / len(row)) + 1e-9


def test_rows_are_capped_independently():
    rows = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.3, 0.3]], dtype=torch.float64)
    result = cap_probabilities(rows, 0.5)
    torch.testing.assert_close(result[0], torch.tensor([0.5, 1 / 3, 1 / 6], dtype=torch.float64))
    torch.testing.assert_close(result[1], rows[1])


def test_a_one_hot_row_after_underflow_still_gives_its_excess_away_evenly():
    result = cap_probabilities(torch.tensor([1.0, 0.0, 0.0]), 0.4)
    torch.testing.assert_close(result, torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64))
