"""Learning rate multipliers: pure functions of the optimiser step, so that resuming needs no state."""

import math
from typing import Literal

FLAT_SHARE = 0.5  # flat-linear: share of the run at the peak
LAST = 0.05  # flat-linear: multiplier at the end


def learning_rate_multiplier(schedule: Literal["cosine", "flat-linear"], step: int, total: int, warmup: int) -> float:
    """Share of the peak rate at optimiser step ``step`` (0-based) of ``total``, after linear warm-up.

    'cosine' falls to 0 at ``total``; 'flat-linear' stays at the peak for half the run and falls linearly
    to 5 %. Steps past ``total`` keep the last value.
    """
    rise = min((step + 1) / warmup, 1.0) if warmup else 1.0
    progress = min(step / max(total, 1), 1.0)
    if schedule == "flat-linear":
        fall = max(progress - FLAT_SHARE, 0.0) / (1 - FLAT_SHARE)
        return rise * (1 - (1 - LAST) * fall)
    after = min(max(step - warmup, 0) / max(total - warmup, 1), 1.0)
    return rise * 0.5 * (1 + math.cos(math.pi * after))
