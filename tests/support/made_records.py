"""Small random policy inputs and records for tests of policies, sampling and objectives."""

from collections.abc import Sequence

import torch

from cacovid.config import SamplingConfig
from cacovid.records import Combinations, Mode, PolicyInput, RolloutRecord, ScoredCombinations, TokenGrid
from cacovid.sampling.ocss import sample_combinations
from cacovid.seeding import generator

GRID = TokenGrid(frames=4, rows=3, columns=2)


def make_input(
    seed: int = 0,
    *,
    grid: TokenGrid = GRID,
    width: int = 16,
    before: int = 2,
    after: int = 5,
    rows: int = 1,
    dtype: torch.dtype = torch.float32,
) -> PolicyInput:
    """A prompt of ``before`` text tokens, the video, ``after`` text tokens."""
    draw = generator("input", seed)
    tokens, text = grid.tokens, before + after
    columns = torch.arange(tokens + text)
    return PolicyInput(
        features=torch.randn(tokens, width, generator=draw).to(dtype),
        text=torch.randn(text, width, generator=draw).to(dtype),
        video_columns=columns[before : before + tokens],
        text_columns=torch.cat([columns[:before], columns[before + tokens :]]),
        position_ids=columns.expand(rows, -1).clone(),
        grid=grid,
    )


def make_record(
    seed: int = 0,
    *,
    rates: Sequence[float] = (1 / 6, 1 / 6, 1 / 3),
    modes: str = "mixed",
    group: int = 8,
    grid: TokenGrid = GRID,
    width: int = 16,
    equal_rewards: bool = False,
) -> RolloutRecord:
    """A record whose inner iterations have the given rates and random rewards."""
    draw = generator("record", seed)
    item = make_input(seed, grid=grid, width=width)
    token_logits = torch.randn(grid.tokens, 2, generator=draw)
    frame_logits = torch.randn(grid.frames, 2, generator=draw)
    config = SamplingConfig(group=group, modes=modes, frame_ratio=0.5)
    iterations = []
    for rate in rates:
        combinations = sample_combinations(token_logits, frame_logits, item.features, grid, config, rate, draw)
        reward = torch.full((group,), 0.3) if equal_rewards else torch.rand(group, generator=draw).round(decimals=1)
        iterations.append(ScoredCombinations(combinations, reward, torch.zeros(group)))
    return RolloutRecord(f"item-{seed}", 0, 0, item, token_logits, frame_logits, tuple(iterations))


def scored(reward: Sequence[float], modes: Sequence[Mode], rate: float = 0.1) -> ScoredCombinations:
    """Rewards and modes with masks that do not matter."""
    combinations = Combinations(
        indices=torch.zeros(len(reward), 1, dtype=torch.int32),
        modes=torch.tensor(modes, dtype=torch.uint8),
        frames=torch.zeros(len(reward), GRID.frames, dtype=torch.bool),
        rate=rate,
    )
    return ScoredCombinations(combinations, torch.tensor(reward).float(), torch.zeros(len(reward)))
