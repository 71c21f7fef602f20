"""The page faults of processes that keep freed memory, and of those that do not, are printed beside their speed."""

import re

import pytest

from benchmarks.kept_memory import Scoring, compare


def test_both_sides_score_and_tell_their_page_faults(capsys: pytest.CaptureFixture[str]) -> None:
    sides = compare(Scoring("embedded", 8, 32, 16, 1), rounds=1)
    printed = capsys.readouterr().out
    assert "embedded: 32 combinations a question, 16 tokens each" in printed
    told = {side: int(faults.replace(",", "")) for side, faults in re.findall(r"(.+): ([\d,]+) page faults", printed)}
    assert told == {name: side.page_faults for name, side in sides.items()}
    assert told.keys() == {"given back", "kept"}
