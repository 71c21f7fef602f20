"""``cacovid train`` on every family of Video-LLMs, through a rollout actor and a learner process."""

import math
from pathlib import Path

import pytest

from cacovid.compressor import Compressor
from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cacovid.data.table import read_questions
from cacovid.policy.base import CompressionPolicy
from tests.integration.conftest import run_training
from tests.support.tiny_models import BUILDERS, save_tiny_model

STEPS = 2
LATE = {"policy.kind": "late", "objective.replay_batch": 4, "objective.replay_updates": 2, "optimizer.warmup_steps": 0}
# The paper's own: decoder layer, all three samplers, adaptive rate, clipped objective over inner iterations.
PAPER = {
    "policy.kind": "paper",
    "objective.kind": "clipped",
    "sampling.modes": "mixed",
    "sampling.tokens_per_frame": [],
    "sampling.rate": 0.1,
    "sampling.inner_iterations": 2,
    "optimizer.schedule": "cosine",
    "optimizer.warmup_steps": 0,
    "optimizer.lr": 1e-3,
    "selection.rule": "frame-budgets",
}
QUICK = ("llava_onevision", "paper")  # runs in the default suite
CASES = [
    pytest.param(family, kind, marks=() if (family, kind) == QUICK else pytest.mark.slow)
    for family in sorted(BUILDERS)
    for kind in ("late", "paper")
]


def config_for(folder: Path, kind: str, table: Path) -> TrainConfig:
    run = {
        "model.path": str(folder),
        "data.train": str(table),
        "run.steps": STEPS,
        "run.items_per_step": 3,
        "run.checkpoint_every": STEPS,
        "sampling.group": 8,
        "actors.count": 1,
        "learners.count": 1,
    }
    return with_overrides(TrainConfig(), run | (LATE if kind == "late" else PAPER))


@pytest.mark.parametrize(("family", "kind"), CASES)
def test_two_training_steps_end_to_end(cluster: None, table: Path, tmp_path: Path, family: str, kind: str) -> None:
    config = config_for(save_tiny_model(family, tmp_path / "model"), kind, table)
    trained = run_training(config, tmp_path / "run")
    assert (trained.outcome.finished_steps, trained.outcome.interrupted) == (STEPS, False)
    rows = trained.run.rows()
    assert [row["questions"] for row in rows] == [3, 3]
    assert all(math.isfinite(value) for row in rows for value in row.values())
    policy = CompressionPolicy.from_pretrained(trained.run.policy)
    assert policy.metadata.trained_steps == STEPS
    assert policy.metadata.model_type == family
    assert all(weight.isfinite().all() for weight in trained.weights.values())
    item = read_questions(table)[0]
    clip = Compressor.from_pretrained(trained.run.policy)(
        item.video, item.question, options=item.options, retention=0.25
    )
    assert len(clip.kept) == clip.encoded.grid.tokens // 4
    assert clip.answer() in "ABCD"
