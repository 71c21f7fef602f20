"""A large table costs no process a gigabyte; `python -m benchmarks.table_memory` takes a million rows."""

import pytest

from benchmarks.table_memory import measure

PARTS = "driver", "actor", "learner"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_large_table_is_checked_drawn_from_and_trained_on_in_little_memory() -> None:
    used = {each.stage: each for each in measure(50_000)}
    assert used.keys() == {"write_collection", "import_rows", "check", "draw", *(f"train: {part}" for part in PARTS)}
    assert used["check"].done.startswith("50000 questions")
    assert all(each.peak_mb < 1_000 for each in used.values())
