"""Learning-rate schedules of the tiny model's training."""

import math
from collections.abc import Callable


def flat_cosine(steps: int, *, flat: float, warmup: int = 0) -> Callable[[int], float]:
    """The factor of the rate at a step: linear warm-up, 1 up to the share ``flat`` of the steps, cosine to 0."""

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = max(0.0, (step - flat * steps) / max(1.0, (1 - flat) * steps))
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))

    return factor
