"""What one item brings to the driver by value, at the shape of a 7B model: 32 frames of 14x14 tokens."""

import pickle
from pathlib import Path

import pytest
import ray.cloudpickle
import torch

from actors.task import TaskResult
from cacovid.config import SamplingConfig
from cacovid.config_files import load_config
from cacovid.packing import PackedIndices
from cacovid.records import Combinations, Rollout, ScoredCombinations, TokenGrid
from cacovid.rollout import adapt_rate
from cacovid.sampling.ocss import sample_combinations
from cacovid.sampling.rates import rate_of

GRID = TokenGrid(32, 14, 14)
CONFIGS = Path(__file__).parents[3] / "configs"
MOST_BYTES = 64 * 1024


def rolled_out(sampling: SamplingConfig, reward: float) -> Rollout:
    """A rollout drawn by untrained logits, all of whose answers earn ``reward``."""
    generator = torch.Generator().manual_seed(0)
    token_logits, frame_logits = torch.randn(GRID.tokens, 2, generator=generator), torch.randn(GRID.frames, 2)
    features = torch.randn(GRID.tokens, 4, generator=generator)
    fixed = sampling.tokens_per_frame
    rate, iterations = rate_of(max(fixed), GRID) if fixed else sampling.rate, []
    for _ in range(sampling.inner_iterations):
        if not fixed:
            rate = adapt_rate(rate, iterations, sampling)
        drawn = sample_combinations(token_logits, frame_logits, features, GRID, sampling, rate, generator)
        iterations.append(ScoredCombinations(drawn, torch.full((len(drawn.modes),), reward), torch.rand(32)))
    return Rollout("question-123456", 7, 6, tuple(iterations))


@pytest.mark.parametrize("name", ["llava-onevision-7b.toml", "llava-onevision-7b-paper.toml"])
@pytest.mark.parametrize("reward", [0.0, 0.5, 1.0])  # the adaptive rate doubles, stays, halves
def test_an_item_brings_at_most_64_kib_to_the_driver(name: str, reward: float) -> None:
    sampling = load_config(CONFIGS / name).sampling
    rollout = rolled_out(sampling, reward)
    assert len(rollout.iterations) == (5 if "paper" in name else 1)
    result = TaskResult(rollouts=(rollout,), input_bytes=(45_000_000,))
    assert len(ray.cloudpickle.dumps(result)) <= MOST_BYTES


def test_what_was_packed_is_what_was_drawn() -> None:
    rollout = rolled_out(load_config(CONFIGS / "llava-onevision-7b-paper.toml").sampling, 0.0)
    arrived: Rollout = pickle.loads(pickle.dumps(rollout))
    assert arrived.nbytes() == rollout.nbytes()
    assert all(isinstance(scored.combinations.indices, PackedIndices) for scored in arrived.iterations)
    passed_on: Rollout = pickle.loads(pickle.dumps(arrived))
    for drawn, got in zip(rollout.iterations, passed_on.iterations, strict=True):
        kept = got.combinations.kept
        assert kept.dtype == torch.int32
        assert torch.equal(kept, drawn.combinations.kept)
        assert got.combinations.kept is kept  # unpacked once
        assert torch.equal(got.combinations.frames, drawn.combinations.frames)


@pytest.mark.parametrize("indices", [[[0, 0, 70_000], [5, 6, 2**31 - 1]], [[3], [1]], [[9, 2], [0, 1]]])
def test_any_indices_come_back(indices: list[list[int]]) -> None:
    kept = torch.tensor(indices, dtype=torch.int32)
    drawn = Combinations(kept, torch.zeros(2, dtype=torch.uint8), torch.zeros(2, 1, dtype=torch.bool), 0.1)
    assert torch.equal(pickle.loads(pickle.dumps(drawn)).kept, kept)
