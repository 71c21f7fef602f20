"""RLlib's TorchLearner with DeepSpeed in place of its optimisers and DDP."""

import os
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModule

from cacovid.config import TrainConfig
from cacovid.cpu_memory import keep_freed_memory
from cacovid.errors import UserError
from cacovid.gpu_memory import held_bytes
from cacovid.policy.base import CompressionPolicy
from cacovid.records import HeldRecord, RolloutRecord
from learner.engine import Placement, PolicyEngine
from learner.record_cache import RecordCache
from learner.training_data import RecordData

PolicyFiles = dict[str, bytes]  # file name -> content of a saved policy folder


class DeepSpeedLearner(TorchLearner):  # type: ignore[misc]
    """One learner process. ``connect`` it, then ``build`` it, then ``update`` it on every rank alike."""

    def connect(self, rank: int, world_size: int, master: str, port: int, policy_files: PolicyFiles) -> None:
        """Join the process group and take the initial policy. Must precede :meth:`build`."""
        self._learner_index = rank
        self._world_size = world_size
        self._policy_files = policy_files
        cfg: TrainConfig = self.config.train_config()
        torch.set_num_threads(cfg.learners.threads)
        cuda = cfg.learners.gpus > 0
        if cuda and not torch.cuda.is_available():
            raise UserError(f"learners.gpus={cfg.learners.gpus:g}, but torch sees no GPU here: set learners.gpus=0")
        if not cuda:
            keep_freed_memory()
        self._torch_device = torch.device("cuda", 0) if cuda else torch.device("cpu")
        # DeepSpeed reads these three, whatever it is told.
        os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"})
        if not dist.is_initialized():
            dist.init_process_group(
                "nccl" if cuda else "gloo",
                init_method=f"tcp://{master}:{port}",
                rank=rank,
                world_size=world_size,
            )

    def build(self) -> None:
        """Build the module and wrap it in DeepSpeed (no DDP: hence TorchLearner's own build is passed over)."""
        super(TorchLearner, self).build()
        cfg: TrainConfig = self.config.train_config()
        self.policy_engine = PolicyEngine(
            policy=self.module[DEFAULT_MODULE_ID].policy,
            optimizer=cfg.optimizer,
            objective=cfg.objective,
            learners=cfg.learners,
            placement=Placement(self._learner_index, self._world_size, self._torch_device),
            total_updates=cfg.total_updates(),
        )
        self._newest_weights = self.policy_engine.weights()
        self._record_cache = RecordCache(cfg.learners.record_cache_bytes)
        self._fetched: list[RolloutRecord] = []

    def _make_module(self) -> MultiRLModule:
        module = super()._make_module()
        with tempfile.TemporaryDirectory() as folder:
            for name, content in self._policy_files.items():
                (Path(folder) / name).write_bytes(content)
            module[DEFAULT_MODULE_ID].attach(CompressionPolicy.from_pretrained(folder))
        return module

    def configure_optimizers(self) -> None:
        """DeepSpeed owns the optimiser."""

    def compute_loss_for_module(self, **kwargs: Any) -> Any:  # noqa: ANN401 - abstract in RLlib
        """Not used: :meth:`update` computes the loss per ragged micro-batch."""
        raise RuntimeError("DeepSpeedLearner.update computes the loss itself")

    def fetch(self, records: Sequence[HeldRecord]) -> list[int]:
        """Get the records of the next :meth:`update` here; returns the places of those whose input is lost."""
        fetched = self._record_cache.fetch(records)
        self._fetched = [record for record in fetched if record is not None]
        return [place for place, record in enumerate(fetched) if record is None]

    def update(self, training_data: RecordData, **kwargs: Any) -> dict[str, float]:  # noqa: ANN401
        """One optimiser step on the records fetched; every learner is called with its shard.

        Returns:
            Metrics over all learners' records, and the GPU memory that this one holds.
        """
        records, self._fetched = self._fetched, []
        assert len(records) == len(training_data.records), "fetch() comes first"
        metrics = self.policy_engine.update(
            records,
            training_data.iterations,
            training_data.update_index,
            training_data.global_count or len(training_data.records),
            training_data.spare,
        )
        if self._torch_device.type == "cuda":
            metrics["learner_gpu_bytes"] = float(held_bytes())
        return metrics

    def publish(self) -> dict[str, torch.Tensor] | None:
        """Gather the weights (every learner takes part); rank 0 returns them."""
        self._newest_weights = self.policy_engine.weights()
        return self._newest_weights if self._learner_index == 0 else None

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        """The weights as last gathered, in float32; the optimiser's state goes through :meth:`save_part`.

        Cached, because RLlib asks one learner only and a ZeRO-3 gather would hang there.
        """
        weights = {name: value.float() for name, value in self._newest_weights.items()}
        return {COMPONENT_RL_MODULE: {DEFAULT_MODULE_ID: weights}}

    def set_state(self, state: dict[str, Any]) -> None:
        """Weights alone cannot be set under ZeRO; checkpoints restore the whole engine."""
        if state:
            raise RuntimeError("a DeepSpeed learner is restored by restore_part(), not by set_state()")

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """None: a learner's state goes in parts, see :mod:`learner.state`."""
        return []

    def save_part(self) -> bytes:
        """This learner's part of a checkpoint."""
        return self.policy_engine.state.save()

    def part_is_saved(self) -> None:
        """Nothing; as the last call done it lets go of the part, which :meth:`save_part` would hold till the next."""

    def begin_restore(self) -> None:
        """Get ready for :meth:`restore_part`."""
        self.policy_engine.state.begin()

    def restore_part(self, part: bytes) -> None:
        """Take what this learner needs of any learner's part."""
        self.policy_engine.state.add(part)

    def end_restore(self) -> None:
        """All parts are there. Every learner must call this."""
        self.policy_engine.state.end()
        self._newest_weights = self.policy_engine.weights()

    def shutdown(self) -> None:
        """Nothing: an actor ends with its process; a driver keeps its group of one, which DeepSpeed remembers."""
