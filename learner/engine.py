"""The policy under DeepSpeed: one optimiser step on a ragged set of rollout records.

Shape legend: B records of one micro-batch, N video tokens, T frames.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from cacovid.config import LearnersConfig, ObjectiveConfig, OptimizerConfig
from cacovid.errors import UserError
from cacovid.objective.loss import LossOutput, MetricSums, batch_loss
from cacovid.objective.rates import rate_groups, set_rates
from cacovid.policy.base import CompressionPolicy, PolicyOutput
from cacovid.policy.batch import collate, group_by_grid
from cacovid.records import RolloutRecord
from learner.deepspeed_import import import_deepspeed
from learner.state import LearnerState

CPU_BUCKET = 1_000_000  # elements; the default of 5e8 costs seconds an iteration at ZeRO-2 on CPU


@dataclass(frozen=True)
class Placement:
    """Where this learner stands among the learners."""

    rank: int
    world_size: int
    device: torch.device


class PolicyEngine:
    """DeepSpeed around a compression policy: AdamW, two parameter groups, schedule, any ZeRO stage."""

    def __init__(
        self,
        policy: CompressionPolicy,
        optimizer: OptimizerConfig,
        objective: ObjectiveConfig,
        learners: LearnersConfig,
        placement: Placement,
        total_updates: int,
    ) -> None:
        self._deepspeed = import_deepspeed(placement.device)
        self.optimizer_config, self.objective, self.learners = optimizer, objective, learners
        self.placement = placement
        self.total_updates = total_updates
        self.policy = policy.to(placement.device)
        self.engine, self.optimizer, *_ = self._deepspeed.initialize(
            model=self.policy,
            model_parameters=rate_groups(self.policy, optimizer),
            config=self._deepspeed_config(),
            dist_init_required=False,
        )
        self.state = LearnerState(
            self.policy, self.engine.optimizer, learners.zero_stage, placement.rank, placement.world_size
        )

    def _bf16(self) -> bool:
        if self.learners.bf16 == "auto":
            return self.placement.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return self.learners.bf16 == "on"

    def _deepspeed_config(self) -> dict[str, Any]:
        cfg = self.optimizer_config
        zero: dict[str, Any] = {"stage": self.learners.zero_stage}
        if self.placement.device.type == "cpu":
            zero |= {"reduce_bucket_size": CPU_BUCKET, "allgather_bucket_size": CPU_BUCKET}
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": cfg.grad_norm,
            "bf16": {"enabled": self._bf16()},
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "optimizer": {
                "type": "AdamW",
                "params": {"lr": cfg.lr, "eps": cfg.eps, "weight_decay": cfg.weight_decay, "torch_adam": True},
            },
        }

    def update(
        self, records: Sequence[RolloutRecord], iterations: int, update_index: int, global_count: int, spare: bool
    ) -> dict[str, float]:
        """One optimiser step on the mean loss over all learners' records; returns reduced metrics.

        Args:
            records: This learner's records.
            iterations: Inner iterations of each record's memory that enter the loss.
            update_index: Optimiser step of the whole run, from 0.
            global_count: Records over all learners.
            spare: The records only keep this learner in step; their weight is 0.

        Raises:
            UserError: A micro-batch does not fit the GPU.
        """
        try:
            return self._step(records, iterations, update_index, global_count, spare)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the learner's GPU is full: lower learners.micro_batch_tokens ({self.learners.micro_batch_tokens}), "
                f"or raise learners.zero_stage ({self.learners.zero_stage}) and learners.count"
            ) from error

    def _step(
        self, records: Sequence[RolloutRecord], iterations: int, update_index: int, global_count: int, spare: bool
    ) -> dict[str, float]:
        lr = set_rates(self.engine.optimizer, self.optimizer_config, update_index, self.total_updates)
        micro_batches = list(self._micro_batches(records))
        steps = self._most_micro_batches(len(micro_batches))
        # DeepSpeed averages gradients over learners; times the world size, the sum over records is left.
        scale = self.placement.world_size / global_count
        sums, plain_norm = MetricSums({}, 0), 0.0
        for step in range(steps):
            real = step < len(micro_batches) and not spare
            batch = micro_batches[min(step, len(micro_batches) - 1)]
            output = self._loss(batch, iterations)
            self.engine.set_gradient_accumulation_boundary(step == steps - 1)
            self.engine.backward(output.loss * (scale if real else 0.0))
            if real:
                sums += output.metrics
            if step == steps - 1:
                plain_norm = self._plain_norm()
            self.engine.step()
        norm = self.engine.get_global_grad_norm()
        return self._over_learners(sums).means() | {"lr": lr, "grad_norm": plain_norm if norm is None else float(norm)}

    def _loss(self, batch: Sequence[RolloutRecord], iterations: int) -> LossOutput:
        inputs = collate([record.input for record in batch]).to(self.placement.device)
        output = self.engine(inputs)
        floats = PolicyOutput(output.token_logits.float(), output.frame_logits.float())
        return batch_loss(floats, batch, iterations, self.objective)

    def _micro_batches(self, records: Sequence[RolloutRecord]) -> Iterator[list[RolloutRecord]]:
        """Records of one grid at a time, within ``micro_batch_tokens``, in a stable order."""
        for indices in group_by_grid([record.input for record in records]).values():
            same = [records[index] for index in indices]
            longest = max(record.input.position_ids.shape[-1] for record in same)
            size = max(1, self.learners.micro_batch_tokens // longest)
            for start in range(0, len(same), size):
                yield same[start : start + size]

    def _most_micro_batches(self, own: int) -> int:
        if self.placement.world_size == 1:
            return own
        count = torch.tensor([own], device=self.placement.device)
        dist.all_reduce(count, op=dist.ReduceOp.MAX)
        return int(count.item())

    def _plain_norm(self) -> float:
        """Gradient norm before clipping where DeepSpeed keeps none (stage 0 in float32); 0 elsewhere."""
        gradients = [parameter.grad for parameter in self.policy.parameters() if parameter.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients)) if gradients else 0.0

    def _over_learners(self, own: MetricSums) -> MetricSums:
        """Every learner's sums added up: no mean of means."""
        if self.placement.world_size == 1:
            return own
        gathered: list[Any] = [None] * self.placement.world_size
        dist.all_gather_object(gathered, own)
        return sum(gathered, MetricSums({}, 0))

    def weights(self) -> dict[str, Tensor]:
        """The whole policy's weights on the CPU. Every learner must call this (ZeRO-3 gathers).

        Bfloat16 ones stay so: the float32 masters are the optimiser's, and float32 modules take them over exactly.
        """
        params = list(self.policy.parameters())
        with self._deepspeed.zero.GatheredParameters(params, enabled=self.learners.zero_stage == 3):
            return {name: value.detach().cpu().clone() for name, value in self.policy.state_dict().items()}
