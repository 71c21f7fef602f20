"""The benchmark of many actors runs the real pool, schedule and replay in miniature."""

import pytest

from benchmarks.scale import main


def test_stand_ins_are_kept_at_work(capsys: pytest.CaptureFixture[str]) -> None:
    main(actors=3, task_s=0.02, pause=1.0, items_per_actor=4, staleness=2, steps=3)
    printed = capsys.readouterr().out
    assert "3 stand-ins" in printed
    shares = [float(line.split("│")[2].split()[0]) for line in printed.splitlines() if "actors at work" in line]
    assert len(shares) == 1
    assert 20 < shares[0] <= 101
