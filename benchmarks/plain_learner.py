"""The learner without DeepSpeed: one process, plain PyTorch."""

from collections.abc import Sequence

import torch

from cacovid.config import ObjectiveConfig, OptimizerConfig
from cacovid.objective.loss import batch_loss
from cacovid.objective.rates import rate_groups, set_rates
from cacovid.policy.base import CompressionPolicy
from cacovid.policy.batch import collate
from cacovid.records import RolloutRecord


class PlainLearner:
    """AdamW with the two parameter groups and the schedule of ``optimizer`` over ``updates`` steps."""

    def __init__(
        self, policy: CompressionPolicy, objective: ObjectiveConfig, optimizer: OptimizerConfig, updates: int
    ) -> None:
        self.policy, self.objective, self.config, self.updates = policy, objective, optimizer, updates
        groups = rate_groups(policy, optimizer)
        self._optimizer = torch.optim.AdamW(groups, eps=optimizer.eps, weight_decay=optimizer.weight_decay)
        self.done = 0

    def update(self, records: Sequence[RolloutRecord]) -> None:
        """One optimiser step on the mean loss over ``records``, which share one grid."""
        set_rates(self._optimizer, self.config, self.done, self.updates)
        output = self.policy(collate([record.input for record in records]))
        loss = batch_loss(output, records, len(records[0].iterations), self.objective).loss / len(records)
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), self.config.grad_norm)
        self._optimizer.step()
        self.done += 1
