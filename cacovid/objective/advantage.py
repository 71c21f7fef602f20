"""Advantages: rewards standardised within groups of comparable combinations.

Source: Ma et al., who standardise over all token samples and over all frame samples of an item seen so
far. Departures: (1) a group holds one sampling rate, since otherwise, once the rate adapts, the group
rewards the rate itself; (2) the content sample joins the token samples of its rate (the reference scores
it and then forgets it); (3) groups whose rewards are all equal get exactly 0, not rounding noise.

Shape legend: R combinations.
"""

import torch
from torch import Tensor

STD_FLOOR = 1e-4


def standardise(reward: Tensor, group: Tensor) -> Tensor:
    """(R,) float64 ``(reward - mean) / (std + 1e-4)`` within each group, with the population's std.

    Args:
        reward: (R,) rewards.
        group: (R,) int64 group of each, numbered from 0; numbers may be unused.
    """
    reward = reward.double()
    groups = int(group.max()) + 1
    count = torch.bincount(group, minlength=groups).clamp_min(1)
    mean = torch.bincount(group, weights=reward, minlength=groups) / count
    deviation = reward - mean[group]
    std = (torch.bincount(group, weights=deviation.square(), minlength=groups) / count).sqrt()
    highest = reward.new_full((groups,), -torch.inf).scatter_reduce_(0, group, reward, "amax")
    lowest = reward.new_full((groups,), torch.inf).scatter_reduce_(0, group, reward, "amin")
    return torch.where((highest == lowest)[group], 0.0, deviation / (std[group] + STD_FLOOR))
