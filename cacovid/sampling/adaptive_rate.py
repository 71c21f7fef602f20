"""The adaptive sampling rate of the inner iterations (paper: before each of them)."""

from collections.abc import Sequence

import torch

from cacovid.config import SamplingConfig
from cacovid.records import Mode, ScoredCombinations


def adapt_rate(rate: float, iterations: Sequence[ScoredCombinations], config: SamplingConfig) -> float:
    """The next inner iteration's rate from the token samples' mean reward so far.

    Halved (not below ``rate_min``) where the answers are mostly right, doubled (not above
    ``rate_max``) where they are mostly wrong; unchanged before the first rollout.
    """
    rewards = [scored.reward[scored.combinations.modes == Mode.TOKEN] for scored in iterations]
    if not rewards:
        return rate
    mean = float(torch.cat(rewards).mean())
    if mean >= config.halve_above:
        return max(rate / 2, config.rate_min)
    if mean <= config.double_below:
        return min(rate * 2, config.rate_max)
    return rate
