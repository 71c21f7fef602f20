"""One ablation is trained and measured; a second time nothing is done again."""

from pathlib import Path

import pytest

from benchmarks.ablations.__main__ import main
from benchmarks.ablations.variants import read_variants, runs_of
from benchmarks.ablations.work import Work, train_and_measure
from cluster.training.run_directory import RunDirectory

VARIANTS = """
[[variant]]
name = "base"
group = "default"
set = ["sampling.group=4", "run.items_per_step=1", "data.train_clips=1"]

[[variant]]
name = "rule"
group = "selection"
like = "base"
measure = ["selection.rule=frame-budgets"]
"""


def test_what_is_known_is_neither_trained_nor_measured_again(
    cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    variants, out = tmp_path / "variants.toml", tmp_path / "out"
    variants.write_text(VARIANTS)
    (run,) = runs_of(read_variants(variants))
    work = Work(out=out, run=run, seed=0, answers=4, every=4, clips=1)
    assert work.missing() == list(run.variants)
    assert train_and_measure(work)
    assert work.missing() == []

    trained = RunDirectory(work.folder)
    (row,) = trained.rows()
    base, rule = (work.figures(each) for each in run.variants)
    assert base is not None
    assert rule is not None
    assert base.answers == 4
    assert base.full_accuracy == row["evaluation/full_accuracy"]
    assert base.accuracy == {each: row[f"evaluation/accuracy_{each:g}"] for each in (0.1, 0.05, 0.02)}
    assert base.awareness == pytest.approx(row["evaluation/question_awareness_auc"])

    work.file(run.variants[1]).unlink()  # the run was ended before it was all measured
    before = work.file(run.owner).stat().st_mtime_ns
    assert train_and_measure(work)
    assert work.figures(run.variants[1]) == rule
    main(out, seeds=1, answers=4, every=4, clips=1, variants=variants)  # would start a process for what is missing
    assert not (work.root / "logs").exists()
    assert work.file(run.owner).stat().st_mtime_ns == before
    assert list(trained.attempts()) == [1]
    assert "runs 1/1" in capsys.readouterr().out
    assert (work.root / "ablations.md").read_text().count("\n| rule (base) | selection | 1 | 4 |") == 1

    assert [each.name for each in work.only(run.variants[1:]).run.variants] == ["rule"]
    main(out, only="rule", seeds=1, answers=4, every=4, clips=1, variants=variants)
    assert "| base |" in (work.root / "ablations.md").read_text(), "what else is known stays in the table"
