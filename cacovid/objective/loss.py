"""The learner's entry: a batch of records of one grid in, the sum of their losses and metrics out.

    records -> flatten -> Memory (advantages) --+--> evidence, credit or clipped values of each record
    inputs  -> policy  -> logits ---------------+    -> 0 where nothing can be learned -> LossOutput (sums, count)

Shape legend: B records, N video tokens, T frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cacovid.config import ObjectiveConfig
from cacovid.objective.clipped import clipped_losses
from cacovid.objective.credit import credit_losses
from cacovid.objective.evidence import evidence_losses
from cacovid.objective.memory import flatten
from cacovid.objective.worth import by_worth
from cacovid.policy.base import PolicyOutput
from cacovid.records import RolloutRecord


@dataclass(frozen=True)
class MetricSums:
    """Per-record metrics as sums with their count, so that micro-batches and processes add up exactly."""

    sums: dict[str, float]
    count: int

    def __add__(self, other: "MetricSums") -> "MetricSums":
        """Sums and counts added; both sides must have the same names unless one of them counts nothing."""
        if not self.count:
            return other
        if not other.count:
            return self
        if self.sums.keys() != other.sums.keys():
            raise KeyError(f"metrics differ: {sorted(self.sums.keys() ^ other.sums.keys())}")
        return MetricSums({name: self.sums[name] + other.sums[name] for name in self.sums}, self.count + other.count)

    def means(self) -> dict[str, float]:
        """Mean of each metric over the records counted (empty without any)."""
        return {name: value / self.count for name, value in self.sums.items()} if self.count else {}


@dataclass(frozen=True)
class LossOutput:
    """Sums over a batch of records. Divide by the global number of records before the backward pass."""

    loss: Tensor  # () sum over the records, uninformative ones add 0
    metrics: MetricSums  # over all records of the batch, uninformative ones included


def batch_loss(
    output: PolicyOutput, records: Sequence[RolloutRecord], iterations: int, config: ObjectiveConfig
) -> LossOutput:
    """Loss of ``records`` on the memory of their first ``iterations`` inner iterations.

    Args:
        output: the policy's logits for the records' inputs, in the same order: (B, N, 2) and (B, T, 2).
        records: B records of one grid.
        iterations: inner iteration i learns from ``record.iterations[:i + 1]``, so pass i + 1.
        config: which objective.

    The gradient reaches ``output`` only; everything else is constant.
    """
    assert len(records) == output.token_logits.shape[0], "one row of logits per record"
    memory = flatten(by_worth(records, config.reward), iterations)
    if config.kind == "evidence":
        values = evidence_losses(output, memory, config)
    elif config.kind == "credit":
        values = credit_losses(output, memory, config)
    else:
        values = clipped_losses(output, records, memory, config)
    # Records without any difference in reward count with 0 throughout, their score decay included.
    active = memory.informative().to(output.token_logits.device)
    losses = {name: torch.where(active, value, 0.0) for name, value in values.items()} | {"informative": active}
    sums = torch.stack([values.detach().double().sum() for values in losses.values()]).tolist()
    return LossOutput(losses["loss"].sum(), MetricSums(dict(zip(losses, sums, strict=True)), len(records)))
