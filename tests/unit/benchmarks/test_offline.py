"""Policies from stored answers: asked once, learned from as the learner does."""

from pathlib import Path

import pytest

from benchmarks import offline
from cacovid.errors import UserError

SMALL = ["data.train_clips=2", "sampling.group=4", "objective.replay_batch=2"]


def test_answers_are_asked_once_and_every_seed_has_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(updates: int, seeds: int) -> str:
        offline.main(tmp_path, updates, overrides=SMALL, questions=3, seeds=seeds, clips=1)
        return capsys.readouterr().out

    assert "2 updates from 12 answers (3 times a group)" in run(2, 1)
    monkeypatch.setattr(offline, "roll_out", None)
    again = run(1, 2)
    assert all(f"late, seed {seed} " in again for seed in (0, 1))


def test_what_cannot_be_learned_from_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"objective\.ratio='drawing': stored answers know no such policy"):
        offline.main(tmp_path, 1, overrides=["objective.kind=clipped", "objective.ratio=drawing"])
    with pytest.raises(UserError, match="has no checkpoint: give the folder of a run"):
        offline.main(tmp_path / "out", 1, overrides=SMALL, runs=[tmp_path])
