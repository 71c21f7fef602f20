"""Sampling rates: which share of each frame's tokens a combination keeps."""

import torch

from cacovid.config import SamplingConfig
from cacovid.errors import UserError
from cacovid.records import TokenGrid


def tokens_at(rate: float, grid: TokenGrid) -> int:
    """Tokens kept per frame, ``k = round(rate * H*W)``, at least 1 and at most all of them."""
    return min(max(round(rate * grid.per_frame), 1), grid.per_frame)


def rate_of(tokens: int, grid: TokenGrid) -> float:
    """The rate that keeps ``tokens`` per frame; UserError when a frame has fewer."""
    if tokens > grid.per_frame:
        raise UserError(
            f"sampling.tokens_per_frame holds {tokens}, but a frame has {grid.per_frame} video tokens: use fewer"
        )
    return tokens / grid.per_frame


def step_tokens(config: SamplingConfig, generator: torch.Generator) -> int | None:
    """One entry of ``tokens_per_frame`` drawn uniformly (ours), or None where the adaptive rate rules."""
    choices = config.tokens_per_frame
    if not choices:
        return None
    return choices[int(torch.randint(len(choices), (), generator=generator))]
