"""A LearnerGroup that starts its own plain actors, with or without remote learners.

    group --update(shard of records)--> [learner 0] <-- gradients, weights (gloo or NCCL) --> [learner 1] ...
       ^                                    |
       '--- metrics, gathered weights <-----'  by a deadline; silence counts as death


RLlib's stock group rests on Ray Train's private backend executor, asks one learner for the state (a
ZeRO-3 gather then hangs) and cannot recover; this one calls every learner for everything.
"""

import json
import logging
import socket
import time
from collections.abc import Callable, Collection, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import ray
import torch
from ray.rllib.core import COMPONENT_LEARNER
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cacovid.config import TrainConfig
from cacovid.errors import UserError
from cacovid.records import HeldRecord
from learner.deepspeed_learner import DeepSpeedLearner, PolicyFiles
from learner.training_data import RecordData

logger = logging.getLogger(__name__)
META = "learners.json"
PART = "part-{:05}.safetensors"  # of each learner
UNAVAILABLE_SECONDS = 60.0  # of broken connections until a learner counts as dead
DEATH_NOTICE_SECONDS = 5.0  # from a peer's failed collective call to Ray's word that a learner died


def free_port() -> int:
    """A TCP port that is free on this node at the moment."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def _raise_death(calls: Sequence[ray.ObjectRef]) -> None:
    """Raise the RayActorError among ``calls``, if there is one or soon will be."""
    for call in ray.wait(calls, num_returns=len(calls), timeout=DEATH_NOTICE_SECONDS)[0]:
        try:
            ray.get(call)
        except ray.exceptions.OutOfMemoryError as error:
            raise LearnerLost(str(error).splitlines()[0]) from error
        except ray.exceptions.RayTaskError:
            continue


class LearnerLost(ray.exceptions.RayActorError):  # type: ignore[misc]
    """A learner has not answered for ``learners.timeout_s``, or Ray killed it to save its node: as if it had died."""

    def __init__(self, message: str) -> None:
        super().__init__(error_msg=message)


class InputsLost(Exception):
    """Records whose inputs went with the node that held them."""

    def __init__(self, records: Sequence[HeldRecord]) -> None:
        super().__init__(f"the inputs of {len(records)} records are lost")
        self.records = records


class _LearnerActor(DeepSpeedLearner):
    """The learner as an actor, with what the group asks of rank 0's node."""

    _last_call: tuple[int, Any] = (-1, None)  # number and value

    def rendezvous(self) -> tuple[str, int]:
        """Address and free port of this learner's node."""
        return ray.util.get_node_ip_address(), free_port()

    def once(self, number: int, method: str, *arguments: Any) -> Any:  # noqa: ANN401 - the method's
        """Do call ``number`` unless it was the last one done: asked again, it gives the same value again.

        So a caller that lost the connection may repeat its question, although an optimiser step done twice
        would be another step.
        """
        if self._last_call[0] != number:
            self._last_call = (number, getattr(self, method)(*arguments))
        return self._last_call[1]


class DeepSpeedLearnerGroup(LearnerGroup):  # type: ignore[misc]
    """0 learners: the learner runs in the driver; N: N actors in one process group.

    The actors' places are reserved together, packed onto few nodes, before any of them starts: half a group
    would wait for its other half for ever.
    """

    def __init__(self, *, config: Any, module_spec: Any, policy_files: PolicyFiles) -> None:  # noqa: ANN401
        # The parent's constructor would start Ray Train's executor: everything it sets is set here.
        self.config = config.copy(copy_frozen=False)
        self._module_spec = module_spec
        self._is_shut_down = False
        self._ts_dropped = 0
        self._worker_manager = None
        self._learner: DeepSpeedLearner | None = None
        self._workers: list[Any] = []
        self._places: PlacementGroup | None = None  # reserved by this group
        self._calls = count()
        try:
            self._start(policy_files)
        except BaseException:
            self.shutdown()
            raise

    def restart(self, policy_files: PolicyFiles) -> None:
        """New learners with the initial policy, in the places that the old ones had, dead, hanging or alive."""
        self._end()
        self._start(policy_files)

    def _start(self, policy_files: PolicyFiles) -> None:
        if self.is_remote:
            self._start_actors(policy_files)
        else:
            self._learner = DeepSpeedLearner(config=self.config, module_spec=self._module_spec)
            self._learner.connect(0, 1, "127.0.0.1", free_port(), policy_files)
            self._learner.build()

    def _start_actors(self, policy_files: PolicyFiles) -> None:
        cfg: TrainConfig = self.config.train_config()
        deadline = time.monotonic() + cfg.run.start_timeout_s
        actor = ray.remote(num_cpus=cfg.learners.cpus, num_gpus=cfg.learners.gpus)(_LearnerActor)
        self._workers = [
            actor.options(scheduling_strategy=place).remote(config=self.config, module_spec=self._module_spec)
            for place in self._reserved_places(cfg)
        ]
        (master, port), *_ = self._wait([w.rendezvous.remote() for w in self._workers], deadline)
        files, size = ray.put(policy_files), len(self._workers)
        self._call("connect", [(rank, size, master, port, files) for rank in range(size)], deadline)
        self._call("build", deadline=deadline)

    def _reserved_places(self, cfg: TrainConfig) -> list[Any]:
        """A scheduling strategy for each learner, in rank order.

        Raises:
            UserError: The cluster had no room for all of them within ``run.start_timeout_s``.
        """
        ranks = range(cfg.learners.count)
        trial = get_current_placement_group()
        if trial is not None:  # Tune has reserved the places, the learners' ones last
            first = trial.bundle_count - cfg.learners.count
            return [PlacementGroupSchedulingStrategy(trial, first + rank) for rank in ranks]
        need = {"CPU": cfg.learners.cpus, "GPU": cfg.learners.gpus}
        bundle = {name: amount for name, amount in need.items() if amount}
        if not bundle:
            return ["DEFAULT" for _ in ranks]
        if self._places is None:  # else it is kept, or on its way to another node
            self._places = placement_group([bundle for _ in ranks], strategy="PACK")
        if not self._places.wait(cfg.run.start_timeout_s):
            raise UserError(
                f"the cluster had no room for {cfg.learners.count} learners of {cfg.learners.cpus:g} CPUs and "
                f"{cfg.learners.gpus:g} GPUs within {cfg.run.start_timeout_s:.0f} s: lower learners.count, "
                "enlarge the cluster or raise run.start_timeout_s"
            )
        return [PlacementGroupSchedulingStrategy(self._places, rank) for rank in ranks]

    def __len__(self) -> int:
        return max(1, len(self._workers))

    def _call(
        self,
        method: str,
        arguments: Sequence[tuple[Any, ...]] | None = None,
        deadline: float | None = None,
        only: int | None = None,
    ) -> list[Any]:
        """Call ``method`` on every learner at once; each learner's own arguments, in rank order.

        Args:
            deadline: ``time.monotonic()`` by which all must have answered; None: ``learners.timeout_s`` from now.
            only: Call this learner alone; what it does must not wait for others.

        Raises:
            RayActorError: A learner died, even where another one's broken collective call came in first, or hangs.
            UserError, OSError: As a learner raised it.
        """
        workers = self._workers if only is None else self._workers[only : only + 1]
        arguments = arguments or [()] * max(1, len(workers))
        if self._learner is not None:
            return [getattr(self._learner, method)(*arguments[0])]
        started, number = time.monotonic(), next(self._calls)
        deadline = deadline or started + self.config.train_config().learners.timeout_s
        while True:
            calls = [w.once.remote(number, method, *given) for w, given in zip(workers, arguments, strict=True)]
            try:
                return self._wait(calls, deadline)
            except ray.exceptions.ActorUnavailableError as error:  # the connection broke; the learner may live
                if time.monotonic() - started > UNAVAILABLE_SECONDS:
                    raise
                logger.warning("a learner cannot be reached, asking again: %s", error)
                time.sleep(1.0)

    def _wait(self, calls: Sequence[ray.ObjectRef], deadline: float) -> list[Any]:
        try:
            return list(ray.get(calls, timeout=max(0.0, deadline - time.monotonic())))
        except ray.exceptions.GetTimeoutError as error:
            silent = len(ray.wait(calls, num_returns=len(calls), timeout=0)[1])
            raise LearnerLost(f"{silent} of {len(calls)} learners have not answered in time") from error
        except ray.exceptions.OutOfMemoryError as error:
            raise LearnerLost(str(error).splitlines()[0]) from error
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError | OSError):
                raise error.cause from error
            _raise_death(calls)
            raise

    def update(self, *, training_data: RecordData, **kwargs: Any) -> list[dict[str, float]]:  # noqa: ANN401
        """One optimiser step over all learners; every entry of the list holds the same metrics but for its memory.

        Raises:
            InputsLost: Inputs are gone with their node; no learner has taken a step.
        """
        training_data.validate()
        shards = [shard for shard, _ in training_data.shard(len(self))]
        # Before the step, whose collective calls would leave the others waiting for a learner without its records.
        places = self._call("fetch", [(shard.records,) for shard in shards])
        lost = [shard.records[place] for shard, its in zip(shards, places, strict=True) for place in its]
        if lost:
            raise InputsLost(lost)
        return self._call("update", [(shard,) for shard in shards])

    def publish(self) -> dict[str, torch.Tensor]:
        """The newest weights, gathered by all learners."""
        weights: dict[str, torch.Tensor] = self._call("publish")[0]
        return weights

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        """Weights as last gathered, from learner 0 (no collective call)."""
        if not self._check_component(COMPONENT_LEARNER, components, not_components):
            return {}
        state = self._learner.get_state() if self._learner else ray.get(self._workers[0].get_state.remote())
        return {COMPONENT_LEARNER: state}

    def set_state(self, state: dict[str, Any]) -> None:
        """Learners are restored from a path, as one piece with DeepSpeed's own state."""
        if state:
            raise RuntimeError("restore the learners with restore_from_path()")

    def save_to_path(self, path: str | Path | None = None, **kwargs: Any) -> str:  # noqa: ANN401
        """Every learner's part, written one after another by this process: only it needs to reach ``path``."""
        if path is None:
            raise ValueError("save_to_path needs a folder")
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        for rank in range(len(self)):
            (folder / PART.format(rank)).write_bytes(self._call("save_part", only=rank)[0])
            self._call("part_is_saved", only=rank)
        cfg: TrainConfig = self.config.train_config()
        (folder / META).write_text(json.dumps({"parts": len(self), "zero_stage": cfg.learners.zero_stage}))
        return str(folder)

    def restore_from_path(self, path: str | Path, **kwargs: Any) -> None:  # noqa: ANN401
        """Restore every learner, whatever the number and ZeRO stage of those that saved; this process alone reads.

        Raises:
            UserError: There is no whole checkpoint, it has the former format or is of another policy.
        """
        folder = Path(path)
        try:
            meta = json.loads((folder / META).read_text())
        except FileNotFoundError:
            raise UserError(f"{folder} holds no complete checkpoint of the learners: restore an earlier one") from None
        if "parts" not in meta:
            raise UserError(
                f"{folder} was written by an earlier release in DeepSpeed's own format: finish that run with it, "
                "or start over with --fresh"
            )
        self._call("begin_restore")
        for rank in range(meta["parts"]):
            try:
                part = (folder / PART.format(rank)).read_bytes()
            except FileNotFoundError:
                raise UserError(
                    f"{folder} holds no complete checkpoint of the learners (no {PART.format(rank)}): "
                    "restore an earlier one"
                ) from None
            held = part if self._learner is not None else ray.put(part)
            self._call("restore_part", [(held,)] * len(self))
        self._call("end_restore")

    def foreach_learner(self, func: Callable[[Any], Any], **kwargs: Any) -> list[Any]:  # noqa: ANN401
        """``func(learner)`` on every learner; a plain list in rank order."""
        if self._learner is not None:
            return [func(self._learner)]
        return list(ray.get([worker.apply.remote(func) for worker in self._workers]))

    def shutdown(self) -> None:
        """End the learners and their process group."""
        if self._is_shut_down:
            return
        self._is_shut_down = True
        self._end()
        if self._places is not None and ray.is_initialized():
            remove_placement_group(self._places)

    def _end(self) -> None:
        """End the learners, whose places stay reserved."""
        if self._learner is not None:
            self._learner.shutdown()
        if ray.is_initialized():  # else they are gone, and ray.kill would start a new cluster
            for worker in self._workers:
                ray.kill(worker)
        self._workers = []
