"""Combinations until the target: told from rows, whatever the run went through."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from cacovid.config import EvaluationConfig, TrainConfig
from cluster.training.price import Price, price_of_policy
from cluster.training.run_directory import RunDirectory
from cluster.training.run_record import run_record
from cluster.training.run_status import RunStatus, StatusFile
from tests.unit.training.test_run_status import actors, row

CONFIG = TrainConfig(run={"steps": 50}, evaluation={"every": 2})
TARGET = CONFIG.evaluation


def rows(*accuracies: float | None, full: float = 0.9) -> list[dict[str, float]]:
    """One row a step of 100 combinations, evaluated where an accuracy is given."""
    figures = [
        {} if each is None else {"evaluation/accuracy_0.05": each, "evaluation/full_accuracy": full}
        for each in accuracies
    ]
    return [{**row(step), **each} for step, each in enumerate(figures)]


def test_the_first_step_that_meets_the_target_counts_relative_to_all_tokens() -> None:
    found = Price.of(rows(None, 0.7, None, 0.883, 0.5, 0.9), TARGET)  # 0.98 * 0.9 = 0.882
    assert found is not None
    assert (found.combinations, found.step, found.scored) == (400, 4, 600)
    assert found.name == "combinations until 98 % at 5 %"
    assert found.value == "400 (step 4)"


def test_a_target_not_met_says_what_was_spent() -> None:
    found = Price.of(rows(None, 0.881), TARGET)
    assert found is not None
    assert (found.combinations, found.step) == (None, None)
    assert found.value == "not reached in 200"


def test_there_is_no_price_without_evaluations_and_none_is_met_by_a_model_that_is_never_right() -> None:
    assert Price.of(rows(None, None), TARGET) is None
    assert Price.of([], TARGET) is None
    blind = Price.of(rows(0.0, full=0.0), TARGET)
    assert blind is not None
    assert blind.combinations is None


def test_target_and_retention_are_configured() -> None:
    cheap = EvaluationConfig(every=1, target_accuracy=0.5, target_retention=0.02)
    measured = [{**row(0), "evaluation/accuracy_0.02": 0.5, "evaluation/full_accuracy": 1.0}]
    found = Price.of(measured, cheap)
    assert found is not None
    assert (found.name, found.combinations) == ("combinations until 50 % at 2 %", 100)
    with pytest.raises(ValidationError, match=r"target_retention=0.05 is none of evaluation.retentions \(0.1, 0.02\)"):
        EvaluationConfig(every=1, retentions=(0.1, 0.02))
    EvaluationConfig(retentions=(0.1, 0.02))  # nothing is evaluated


def test_status_report_and_policy_folder_tell_it(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", CONFIG)
    status = StatusFile(run, CONFIG, 1, None)
    written: list[str] = []
    for each in rows(None, 0.7, None, 0.89, None):
        written.append(json.dumps({**each, "combinations_per_second": 50.0}) + "\n")
        run.metrics.write_text("".join(written))
        status.add(each, actors())
    price = RunStatus.read(run.folder).price
    assert price is not None
    assert (price.combinations, price.step) == (400, 4)
    assert run_record(run.folder).facts["combinations until 98 % at 5 %"] == "400 (step 4)"
    told = price_of_policy(run.policy)
    assert told is not None
    assert told.combinations == 400
    assert price_of_policy(tmp_path / "policy") is None
    run.cut_metrics(3)  # back to a checkpoint before
    status.look()
    price = RunStatus.read(run.folder).price
    assert price is not None
    assert price.value == "not reached in 300"
