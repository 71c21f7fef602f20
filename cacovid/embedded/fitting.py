"""The loop that every stage of the tiny models' training runs."""

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor, nn

from cacovid.embedded.progress import Progress

SMOOTHED: Final = 0.05  # weight of the newest step in running means
_REPORT_EVERY = 20


def fit(
    stage: str,
    steps: int,
    optimizer: torch.optim.Optimizer,
    factor: Callable[[int], float],
    loss_of: Callable[[int], tuple[Tensor, Mapping[str, float]]],
    progress: Progress,
    *,
    newest: float = 1.0,
) -> dict[str, float]:
    """Minimise in place what ``loss_of`` a step returns; the last metrics.

    Args:
        stage: name for ``progress``.
        factor: of the optimiser's rate, at a step.
        loss_of: loss and metrics of a step, which counts from 0.
        newest: weight of the newest step in the metrics, which are running means below 1.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    metrics: dict[str, float] = {}
    for step in range(steps):
        loss, latest = loss_of(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        metrics = {name: (1 - newest) * metrics.get(name, value) + newest * value for name, value in latest.items()}
        if (step + 1) % _REPORT_EVERY == 0 or step + 1 == steps:
            progress(stage, step + 1, steps, metrics)
    return metrics
