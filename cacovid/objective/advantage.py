"""Advantages of an item's combinations.

Shape legend: M combinations of all inner iterations so far, T frames, k retained tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cacovid.records import Mode, RolloutRecord, ScoredCombinations

STD_FLOOR = 1e-4


@dataclass(frozen=True)
class Advantages:
    """Standardised rewards of one item, in the order of its inner iterations."""

    values: Tensor  # (M,) float32
    by_frames: Tensor  # (M,) bool, True for frame samples
    informative: bool  # False when every group's rewards are all equal: all values are 0


def item_advantages(iterations: Sequence[ScoredCombinations]) -> Advantages:
    """(reward - mean) / (std + 1e-4) within groups of one kind and one rate.

    Source: Ma et al., who standardise over all token samples and over all frame samples seen so far.
    Departures: (1) a group holds one sampling rate, since otherwise, once the rate adapts, it would
    reward the rate itself; (2) the content sample joins the token samples of its rate (the reference
    scores it and then forgets it). The std is the population's. Groups whose rewards are all equal get
    exactly 0.
    """
    rates = torch.cat([torch.full((it.reward.shape[0],), it.combinations.rate) for it in iterations])
    reward = torch.cat([it.reward.float() for it in iterations])
    frame = torch.cat([it.combinations.modes == Mode.FRAME for it in iterations])
    values = torch.zeros_like(reward)
    for rate in rates.unique():
        for kind in (False, True):
            members = (rates == rate) & (frame == kind)
            values[members] = _standardise(reward[members])
    return Advantages(values, frame, bool((values != 0).any()))


def is_informative(record: RolloutRecord, iterations: int | None = None) -> bool:
    """Whether the record's first ``iterations`` (None: all) hold any difference in reward to learn from."""
    return item_advantages(record.iterations[:iterations]).informative


def _standardise(reward: Tensor) -> Tensor:
    """Zero where all rewards are equal: their mean may differ from them by rounding."""
    if reward.numel() == 0 or bool((reward == reward[0]).all()):
        return torch.zeros_like(reward)
    return (reward - reward.mean()) / (reward.std(correction=0) + STD_FLOOR)
