"""Which checkpoint is the best: told from rows and from what is kept, also after a kill at any moment."""

import json
from pathlib import Path

import pytest

from cluster.training.best_checkpoint import BestCheckpoint, saved_step
from cluster.training.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path)


def rows(run: RunDirectory, *scores: float | None) -> None:
    names = ("evaluation/accuracy_0.1", "evaluation/accuracy_0.05")
    figures = [{} if score is None else {names[0]: score + 0.1, names[1]: score - 0.1} for score in scores]
    run.metrics.write_text("".join(json.dumps({"step": step, **each}) + "\n" for step, each in enumerate(figures)))


def keep(run: RunDirectory, step: int) -> None:
    policy = run.checkpoint(step) / "policy"
    policy.mkdir(parents=True)
    (policy / "policy.json").write_text(str(step))


def test_score_is_the_mean_over_all_retentions(run: RunDirectory) -> None:
    best = BestCheckpoint(run, (0.1, 0.05))
    assert best.score({"evaluation/accuracy_0.1": 0.6, "evaluation/accuracy_0.05": 0.4}) == pytest.approx(0.5)
    assert best.score({"evaluation/accuracy_0.1": 0.6}) is None


def test_only_a_better_policy_takes_the_place(run: RunDirectory) -> None:
    best = BestCheckpoint(run, (0.1, 0.05))
    rows(run, None, 0.5)
    assert best.would_be(2)
    keep(run, 2)
    best.show()
    assert json.loads(run.best.read_text())["score"] == pytest.approx(0.5)
    for later in (0.5, None, 0.4):
        rows(run, None, 0.5, later)
        assert not best.would_be(3)
    rows(run, None, 0.5, 0.6)
    assert best.would_be(3)
    keep(run, 3)
    best.show()
    assert (run.best_policy / "policy.json").read_text() == "3"


def test_what_a_kill_left_undone_is_made_up_for(run: RunDirectory) -> None:
    best = BestCheckpoint(run, (0.1, 0.05))
    rows(run, 0.5, 0.6)
    keep(run, 1)
    best.show()
    keep(run, 2)  # killed before best.json
    best.show()
    assert saved_step(run.best) == 2
    rows(run, 0.5)  # a resumed run does step 2 again
    best.show()
    assert saved_step(run.best) == 1
    assert (run.best_policy / "policy.json").read_text() == "1"
    rows(run)
    best.show()
    assert saved_step(run.best) is None
    assert not run.best_policy.exists()
