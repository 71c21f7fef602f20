"""CPO: contribution-aware policy optimisation as an RLlib Algorithm.

One training step s, with ``staleness`` L (here 1):

    driver            submit(s+L) with weights v(s) ......... collect(s) -> replay -> update x U -> v(s+1)
    rollout actors    [ s being answered ][ s+1 being answered while the learner updates ...
    learner                                                       [ update ][ update ] ...

Rollouts of step s always use the weights of version max(s - L, 0), never "the newest at hand": staleness
is exact, so results depend neither on speed nor on the number of actors. At most L + 1 steps are queued.
"""

import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeAlias

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.env.env_runner_group import EnvRunnerGroup

from actors.pool import RolloutPool
from actors.task import EncodeTask, RolloutTask, TaskResult, Weights
from cacovid.data.skipped import SkippedItems
from cacovid.errors import UserError
from cacovid.objective.replay import ReplayBuffer
from cacovid.policy.base import CompressionPolicy
from cacovid.records import RolloutRecord, VideoQuestion
from cacovid.sampling.rates import step_tokens
from cacovid.seeding import generator
from cluster.config import CPOConfig
from cluster.initial_policy import initial_policy_files
from cluster.item_order import ItemOrder
from cluster.replay_snapshot import ReplaySnapshot
from cluster.step_metrics import StepMetrics, rollout_metrics
from cluster.training_items import training_items
from learner.deepspeed_learner import PolicyFiles
from learner.group import DeepSpeedLearnerGroup
from learner.training_data import RecordData

MODEL = "model-fingerprint"  # file in a checkpoint
Handle: TypeAlias = ray.ObjectRef | RolloutRecord


class CPO(Algorithm):  # type: ignore[misc]
    """Trains a compression policy against a frozen Video-LLM."""

    learner_group: DeepSpeedLearnerGroup

    @classmethod
    def get_default_config(cls) -> CPOConfig:
        """The embedded default."""
        return CPOConfig()

    def setup(self, config: CPOConfig) -> None:
        """Prepare the items, make the initial policy, start actors and learners."""
        resolved = config if isinstance(config, CPOConfig) else self.get_default_config().update_from_dict(config)
        cfg = self.train_cfg = resolved.train_config()
        self.run_dir = Path(resolved.run_dir or self.logdir)
        self.skipped = SkippedItems(self.run_dir / "skipped.jsonl", cfg.data.max_skipped)
        items = training_items(cfg, self.run_dir, self.skipped)
        if not items:
            raise UserError(f"{cfg.data.train} holds no questions")
        self.order = ItemOrder(items, cfg.run.items_per_step, cfg.run.seed)
        # RLlib hands a frozen config over; the files travel with a copy of it to the learner group.
        thawed = resolved.copy(copy_frozen=False)
        files = initial_policy_files(cfg)
        self._write_initial_policy(files)
        thawed.policy_files = ray.put(files)
        self.config = thawed  # RLlib takes the given config only where it is a plain dict
        super().setup(thawed)
        self.config.policy_files = None  # an object reference must not get into checkpoints
        self.pool = RolloutPool(self.env_runner_group, cfg.actors.max_retries)
        self.replay: ReplayBuffer[Handle] = ReplayBuffer(cfg.objective.replay_items, cfg.objective.replay_bytes)
        self.finished_steps = 0
        self._submitted = 0  # steps whose rollouts were given out
        self._tasks: dict[int, list[tuple[int, int]]] = {}
        self._published: dict[int, ray.ObjectRef | Weights] = {}  # weights still needed, by version
        self._versions: dict[int, int] = {}  # policy version of each submitted step
        self._publish()

    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """Nothing: the pool brings actors back, and each task carries its weights."""
        return []

    def training_step(self) -> None:
        """One training step: rollouts of ``items_per_step`` questions, then the learner's updates."""
        started = time.perf_counter()
        step = self.finished_steps
        self._submit_ahead(step)
        results = self.pool.collect(self._tasks.pop(step))
        collected = time.perf_counter()
        records = [record for result in results for record in result.records]
        self._set_aside(results)
        if not records:
            raise UserError(f"no item of training step {step} could be used: see {self.run_dir / 'skipped.jsonl'}")
        handles = [self._hold(record) for record in records]
        losses = self._learn(step, records, handles)
        self.finished_steps = step + 1
        self._versions.pop(step, None)
        self._publish()
        metrics = rollout_metrics(
            results,
            losses,
            StepMetrics(
                step=step,
                epoch=self.order.epoch_of(step + 1),
                policy_version=records[0].policy_version,
                wait_seconds=collected - started,
                learn_seconds=time.perf_counter() - collected,
                lost_actors=self.pool.lost_actors,
                requeued_tasks=self.pool.requeued,
                replay_items=len(self.replay),
                replay_bytes=self.replay.nbytes,
                skipped=self.skipped.skipped,
            ),
        )
        for name, value in metrics.items():
            self.metrics.log_value(("cpo", name), value, window=1)

    def _submit_ahead(self, step: int) -> None:
        """Give out rollouts up to ``staleness`` steps ahead, with the newest weights."""
        last = min(step + self.train_cfg.actors.staleness, self.train_cfg.run.steps - 1)
        for ahead in range(self._submitted, max(last, step) + 1):
            self._submit(ahead, self._versions.get(ahead, self.finished_steps))
            self._submitted = ahead + 1

    def _submit(self, step: int, version: int) -> None:
        cfg = self.train_cfg
        self._versions[step] = version
        items = self.order.of_step(step)
        size = cfg.actors.items_per_task
        tasks = [
            RolloutTask(
                step=step,
                index=index,
                items=items[index : index + size],
                policy_version=version,
                weights=self._published[version],
                tokens_per_frame=step_tokens(cfg.sampling, generator(cfg.run.seed, "rate", step)),
            )
            for index in range(0, len(items), size)
        ]
        self._tasks[step] = [task.key for task in tasks]
        self.pool.submit(tasks)

    def _set_aside(self, results: list[TaskResult]) -> None:
        for result in results:
            self.skipped.use(len(result.records))
            for aside in result.set_aside:
                self.skipped.add(aside.item.id, aside.item.video, aside.reason)

    def _hold(self, record: RolloutRecord) -> Handle:
        """By reference where learners are remote; put by the driver, so that no actor's death loses it."""
        return ray.put(record) if self.learner_group.is_remote else record

    def _learn(self, step: int, records: list[RolloutRecord], handles: list[Handle]) -> list[dict[str, float]]:
        objective = self.train_cfg.objective
        per_step = self.train_cfg.updates_per_step()
        if objective.kind == "clipped":
            batches = [(handles, iteration + 1) for iteration in range(per_step)]
        else:
            for record, handle in zip(records, handles, strict=True):
                if objective.replay_bytes:
                    self.replay.add(f"{record.step}/{record.item_id}", record.nbytes(), handle)
            memory = self.train_cfg.sampling.inner_iterations
            batches = [(self._draw(step, update, handles), memory) for update in range(per_step)]
        return [
            self.learner_group.update(
                training_data=RecordData(
                    records=list(batch), iterations=iterations, update_index=step * per_step + update
                )
            )[0]
            for update, (batch, iterations) in enumerate(batches)
        ]

    def _draw(self, step: int, update: int, fresh: list[Handle]) -> list[Handle]:
        """One update's questions: from the replay buffer, or the step's own without one."""
        objective = self.train_cfg.objective
        if not objective.replay_bytes:
            return fresh
        drawn = self.replay.draw(objective.replay_batch, generator(self.train_cfg.run.seed, "replay", step, update))
        return [entry.value for entry in drawn]

    def _publish(self) -> None:
        """Make the newest weights available by one reference; drop versions that no queued step needs."""
        weights = self.learner_group.publish()
        remote = self.env_runner_group.num_remote_env_runners() > 0
        self._published[self.finished_steps] = ray.put(weights) if remote else weights
        needed = {self.finished_steps, *self._versions.values()}
        self._published = {version: held for version, held in self._published.items() if version in needed}
        self._newest = weights

    def _write_initial_policy(self, files: PolicyFiles) -> None:
        self._initial_policy = self.run_dir / "initial_policy"
        self._initial_policy.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (self._initial_policy / name).write_bytes(content)

    def _model_fingerprint(self) -> str:
        return CompressionPolicy.from_pretrained(self._initial_policy).metadata.model_fingerprint

    def policy(self) -> CompressionPolicy:
        """The policy as trained so far, on the CPU, with its metadata."""
        policy = CompressionPolicy.from_pretrained(self._initial_policy)
        policy.load_state_dict(self._newest)
        policy.metadata = policy.metadata.model_copy(update={"trained_steps": self.finished_steps})
        return policy

    def restart_learners(self) -> None:
        """Start the learner group anew with the initial policy; restore a checkpoint afterwards."""
        self.learner_group.shutdown()
        files = {path.name: path.read_bytes() for path in sorted(self._initial_policy.iterdir())}
        self.config = self.config.copy(copy_frozen=False)
        self.config.policy_files = ray.put(files)
        self.learner_group = self.config.build_learner_group(
            rl_module_spec=self.config.get_multi_rl_module_spec(spaces=self.spaces)
        )
        self.config.policy_files = None

    def newest_handle(self) -> ray.ObjectRef | Weights:
        """The newest weights as tasks carry them."""
        return self._published[self.finished_steps]

    def drain(self) -> None:
        """Wait until every rollout given out is answered; the answers stay for the next steps."""
        self.pool.settle()

    def policy_weights(self) -> Weights:
        """The newest float32 weights on the CPU."""
        return self._newest

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,  # noqa: ANN401 - RLlib's signature
    ) -> dict[str, Any]:
        """RLlib's own state, the data cursor, weights of queued rollouts and the replay buffer."""
        state: dict[str, Any] = super().get_state(components, not_components=not_components, **kwargs)
        held = [value for _, _, value in self.replay.state_dict()["entries"]]
        records = ray.get(held) if self.learner_group.is_remote else held
        versions = {step: version for step, version in self._versions.items() if step >= self.finished_steps}
        state["cpo"] = {
            "finished_steps": self.finished_steps,
            "versions": versions,
            "published": {version: self._weights_of(version) for version in {self.finished_steps, *versions.values()}},
            "replay": ReplaySnapshot.of(records),
            "skipped": {"met": self.skipped.met, "skipped": self.skipped.skipped},
        }
        return state

    def _weights_of(self, version: int) -> Weights:
        held = self._published[version]
        weights: Weights = ray.get(held) if isinstance(held, ray.ObjectRef) else held
        return weights

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken: same items, same weights for rollouts then in flight."""
        super().set_state({key: value for key, value in state.items() if key != "cpo"})
        if "cpo" not in state:
            return
        saved = state["cpo"]
        self.finished_steps = self._submitted = saved["finished_steps"]
        remote = self.env_runner_group.num_remote_env_runners() > 0
        self._published = {
            version: ray.put(weights) if remote else weights for version, weights in saved["published"].items()
        }
        self._newest = saved["published"][self.finished_steps]
        self._versions = dict(saved["versions"])
        self.skipped.met, self.skipped.skipped = saved["skipped"]["met"], saved["skipped"]["skipped"]
        self._refill(saved["replay"])

    def save_to_path(self, path: str | Path | None = None, **kwargs: Any) -> str:  # noqa: ANN401
        """RLlib's checkpoint, with the Video-LLM's fingerprint beside it."""
        saved = super().save_to_path(path, **kwargs)
        (Path(saved) / MODEL).write_text(self._model_fingerprint())
        return str(saved)

    def restore_from_path(self, path: str | Path, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Restore a checkpoint of this Video-LLM.

        Raises:
            UserError: It was written with another model.
        """
        found = (Path(path) / MODEL).read_text()
        if found != self._model_fingerprint():
            raise UserError(
                f"the checkpoint was written with another model (fingerprint {found}) than "
                f"{self.train_cfg.model.path!r} ({self._model_fingerprint()}): resume with that model or start anew"
            )
        super().restore_from_path(path, *args, **kwargs)

    def _refill(self, snapshot: ReplaySnapshot) -> None:
        size = self.train_cfg.actors.items_per_task
        items: list[VideoQuestion] = [self.order.by_id[id] for id in snapshot.item_ids()]
        tasks = [EncodeTask(index, tuple(items[index : index + size])) for index in range(0, len(items), size)]
        self.pool.submit(tasks)
        results = self.pool.collect([task.key for task in tasks])
        lost = [aside for result in results for aside in result.set_aside]
        if lost:
            raise UserError(f"item {lost[0].item.id!r} of the replay buffer can no longer be read: {lost[0].reason}")
        inputs = {id: value for result in results for id, value in result.inputs.items()}
        self.replay.load_state_dict({"entries": []})
        for record in snapshot.refill(inputs):
            self.replay.add(f"{record.step}/{record.item_id}", record.nbytes(), self._hold(record))
