"""One timer and one table for every benchmark."""

import time

import pytest

from benchmarks.table import show_ratios
from benchmarks.timing import Spread, alternating_rounds, seconds


def test_sides_take_turns_and_what_comes_before_a_round_is_not_timed():
    turns = []
    sides = {"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}
    times = alternating_rounds(sides, 2, before=lambda: turns.append("-") or time.sleep(0.05))
    assert turns == ["-", "a", "b", "-", "a", "b"]
    assert [(name, len(taken)) for name, taken in times.items()] == [("a", 2), ("b", 2)]
    assert max(map(max, times.values())) < 0.05
    assert seconds(lambda: time.sleep(0.02)) >= 0.02


def test_a_spread_is_the_median_with_its_bounds():
    assert str(Spread.of([3.0, 1.0, 2.0, 10.0])) == "2.50 (1.00 - 10.00)"


def test_ratios_are_taken_within_a_round(capsys: pytest.CaptureFixture[str]):
    times = {"plain": (1.0, 4.0), "other": (2.0, 8.0)}
    show_ratios("a comparison", "per second", times, lambda taken: 100 / taken)
    printed = capsys.readouterr().out
    assert "a comparison" in printed
    assert "ratio to plain (min - max)" in printed
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if "0." in line]
    assert rows == [["other", "31", "0.50 (0.50 - 0.50)"]]


def test_the_ratio_is_that_of_the_figures_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A side that takes twice as long has twice the milliseconds, and half the answers a second."""
    times = {"plain": [1.0], "slow": [2.0]}
    show_ratios("time", "milliseconds", times, lambda taken: 1000 * taken)
    show_ratios("rate", "a second", times, lambda taken: 100 / taken)
    printed = capsys.readouterr().out
    slow = [[cell.strip() for cell in line.strip("│").split("│")] for line in printed.splitlines() if "slow" in line]
    assert slow == [["slow", "2000", "2.00 (2.00 - 2.00)"], ["slow", "50", "0.50 (0.50 - 0.50)"]]
