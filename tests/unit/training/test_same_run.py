"""Which configuration continues a run: one that learns the same, wherever it runs."""

import pytest

from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cacovid.errors import UserError
from cluster.training.same_run import FIELDS, check_same_run, may_change

SAVED = TrainConfig()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("actors.count", 7),
        ("actors.max", 9),
        ("learners.count", 4),
        ("learners.zero_stage", 3),
        ("run.steps", 500),
        ("run.reuse_bytes", 0),
        ("run.tracking", ("mlflow",)),
        ("run.mlflow_uri", "http://here:5000"),
        ("run.store_timeout_s", 5),
        ("evaluation.every", 4),
    ],
)
def test_places_may_change_and_steps_may_be_added(field: str, value: int) -> None:
    check_same_run(SAVED, with_overrides(SAVED, {field: value}), "runs/one")


def test_every_other_field_that_differs_is_named_with_the_remedy() -> None:
    given = with_overrides(SAVED, {"run.seed": 3, "actors.staleness": 2, "actors.count": 5})
    expected = (
        r"^runs/one holds a run of another configuration "
        r"\(actors\.staleness was 1 and is 2, run\.seed was 0 and is 3\):.*--resume runs/one.*--fresh"
    )
    with pytest.raises(UserError, match=expected):
        check_same_run(SAVED, given, "runs/one")


def test_steps_are_not_taken_away() -> None:
    with pytest.raises(UserError, match="a run of 24 steps, which cannot become 20"):
        check_same_run(SAVED, with_overrides(SAVED, {"run.steps": 20}), "runs/one")


def test_what_is_listed_exists_and_what_is_learned_stays() -> None:
    fields = {f"{section}.{name}" for section, fields in SAVED for name, _ in fields}
    assert fields >= FIELDS
    fixed = {name for name in fields if not may_change(name)}
    assert {name.partition(".")[0] for name in fixed} >= {"model", "data", "policy", "sampling", "objective", "run"}
    assert {"learners.bf16", "actors.staleness", "optimizer.lr", "model.path", "run.items_per_step"} <= fixed
