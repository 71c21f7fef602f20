"""Rollouts of a 7B model's shape that say nothing, for benchmarks of the way they take."""

from functools import cache

import torch
from ray import cloudpickle

from actors.task import PublishedWeights, RolloutTask, TaskResult
from cacovid.records import Combinations, Rollout, ScoredCombinations, TokenGrid, VideoQuestion
from cacovid.rollout import Part

GRID = TokenGrid(32, 14, 14)  # LLaVA-OneVision's of 32 frames
WIDTH = 3584  # of the language model
GROUP, KEPT = 32, 4 * GRID.frames  # combinations of an item, retained tokens of each
NO_WEIGHTS = PublishedWeights(0, {})
INPUT_BYTES = GRID.tokens * WIDTH * torch.bfloat16.itemsize  # 45 MB of features, beside which the text is little

_DRAW = torch.Generator().manual_seed(0)
_DRAWN = Combinations(
    torch.stack([torch.randperm(GRID.tokens, generator=_DRAW)[:KEPT].sort().values.int() for _ in range(GROUP)]),
    torch.ones(GROUP, dtype=torch.uint8),
    torch.zeros(GROUP, GRID.frames, dtype=torch.bool),
    KEPT / GRID.tokens,
)
_REWARD = torch.rand(GROUP, generator=_DRAW)


def questions(count: int) -> list[VideoQuestion]:
    """Questions whose video is never read."""
    return [VideoQuestion(str(n), "v.mp4", "?", ("a", "b"), "A", "multiple choice", "made") for n in range(count)]


def made_result(task: RolloutTask, seconds: float = 0.0) -> TaskResult:
    """What an actor returns by value for ``task``: its rollouts, all drawn alike."""
    scored = _scored(task.part)
    rollouts = tuple(Rollout(item.id, task.step, task.weights.version, (scored,)) for item in task.items)
    inputs = 0 if task.part.number else len(rollouts)
    return TaskResult(rollouts=rollouts, input_bytes=(INPUT_BYTES,) * inputs, seconds=seconds)


def made_answers(parts: int) -> list[bytes]:
    """One item's results, pickled as they come to the driver: one for each part of its combinations."""
    tasks = [RolloutTask(0, tuple(questions(1)), NO_WEIGHTS, None, Part(number, parts)) for number in range(parts)]
    return [cloudpickle.dumps(made_result(task)) for task in tasks]


@cache
def _scored(part: Part) -> ScoredCombinations:
    rows = part.rows(GROUP)
    return ScoredCombinations(_DRAWN.rows(rows), _REWARD[rows], _REWARD[rows])
