"""CPO: contribution-aware policy optimisation as an RLlib Algorithm.

One training step s, with ``staleness`` L (here 1):

    driver            submit(s+L) with weights v(s) ......... collect(s) -> replay -> update x U -> v(s+1)
    rollout actors    [ s being answered ][ s+1 being answered while the learner updates ...
    learner                                                       [ update ][ update ] ...

See :mod:`cluster.training.rollout_schedule` for what is given out when.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import ray
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.tune import PlacementGroupFactory

from actors.death import death_of
from actors.env_runner import DUMMY_SPACE, RolloutEnvRunner
from actors.host import RayHost
from actors.pool import RolloutPool
from actors.task import EncodeTask, EvaluateTask, Task, TaskResult, parts
from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cacovid.data.order import ItemOrder
from cacovid.data.skipped import SkippedItems
from cacovid.embedded.items import evaluation_items, training_items
from cacovid.errors import UserError
from cacovid.objective.replay_snapshot import ReplaySnapshot
from cacovid.policy.base import CompressionPolicy
from cacovid.records import VideoQuestion
from cluster.training.foreign_settings import refuse_foreign_settings
from cluster.training.initial_policy import initial_policy_files, read_policy_files
from cluster.training.rollout_schedule import RolloutSchedule
from cluster.training.step_metrics import StepMetrics, evaluation_metrics, rollout_metrics
from cluster.training.updates import Updates
from learner.deepspeed_learner import DeepSpeedLearner
from learner.group import DeepSpeedLearnerGroup
from learner.module import CompressionModule

MODEL = "model-fingerprint"  # file in a checkpoint
STATE = "cpo"  # our part of RLlib's state and of its results


# Fields of a run that RLlib has settings of its own for: those hold the value.
PLACEMENT = {
    "actors.count": "num_env_runners",
    "actors.cpus": "num_cpus_per_env_runner",
    "actors.gpus": "num_gpus_per_env_runner",
    "learners.count": "num_learners",
    "learners.cpus": "num_cpus_per_learner",
    "learners.gpus": "num_gpus_per_learner",
}


class CPOConfig(AlgorithmConfig):  # type: ignore[misc]
    """Configures :class:`CPO`.

    ``CPOConfig().env_runners(num_env_runners=2).learners(num_learners=1)`` works as for any RLlib
    algorithm; everything else is one :class:`TrainConfig`, given whole or as dotted overrides::

        CPOConfig().training(overrides={"run.steps": 20, "optimizer.lr": 1e-3}).build_algo().train()
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or CPO)
        self.base = TrainConfig()
        self.overrides: dict[str, Any] = {}
        self.run_dir: str | None = None
        self.initial_policy: str | None = None  # folder, once the algorithm has made it
        self.first_video: str | None = None  # that the driver sees, and every actor must see
        self.env_runner_cls = RolloutEnvRunner
        self.observation_space = DUMMY_SPACE
        self.action_space = DUMMY_SPACE
        self._dont_auto_sync_env_runner_states = True
        self.merge_env_runner_states = False
        self.broadcast_env_runner_states = False
        self._adopt(self.base)

    @classmethod
    def from_train_config(cls, config: TrainConfig) -> Self:
        """An algorithm config that runs ``config`` exactly."""
        built = cls()
        built.base = config
        built._adopt(config)
        return built

    def _adopt(self, config: TrainConfig) -> None:
        for name, attribute in PLACEMENT.items():
            section, field = name.split(".")
            setattr(self, attribute, getattr(getattr(config, section), field))

    def training(
        self,
        *,
        overrides: Mapping[str, Any] | None = None,
        run_dir: str | None = None,
        **kwargs: Any,  # noqa: ANN401 - RLlib's own settings
    ) -> Self:
        """Set fields of the :class:`TrainConfig` by dotted name, beside RLlib's own settings.

        Args:
            overrides: e.g. ``{"optimizer.lr": 1e-3}``; validated when the algorithm is built.
            run_dir: Where drawn clips, the embedding cache, ``skipped.jsonl`` and the like go; None takes
                RLlib's log folder.
        """
        super().training(**kwargs)
        if overrides is not None:
            for name, value in overrides.items():
                if name in PLACEMENT:
                    setattr(self, PLACEMENT[name], value)
                else:
                    self.overrides = {**self.overrides, name: value}
        if run_dir is not None:
            self.run_dir = run_dir
        return self

    def validate(self) -> None:
        """RLlib's own checks and ours.

        Raises:
            UserError: An override that does not fit, or a setting of RLlib that CPO does not have.
        """
        self.train_config()
        super().validate()
        if not self.in_evaluation:  # RLlib derives that config itself
            refuse_foreign_settings(self)

    def train_config(self) -> TrainConfig:
        """The resolved run: base, overrides, then RLlib's own numbers of actors and learners."""
        placement = {name: getattr(self, attribute) for name, attribute in PLACEMENT.items()}
        if placement["learners.cpus"] == "auto":  # RLlib's own default
            del placement["learners.cpus"]
        return with_overrides(self.base, {**self.overrides, **placement})

    def get_default_learner_class(self) -> type[DeepSpeedLearner]:
        """The DeepSpeed learner."""
        return DeepSpeedLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """The compression policy's module."""
        return RLModuleSpec(module_class=CompressionModule, observation_space=DUMMY_SPACE, action_space=DUMMY_SPACE)

    @property
    def _model_config_auto_includes(self) -> dict[str, Any]:
        return {}

    def build_learner_group(
        self,
        *,
        env: Any = None,  # noqa: ANN401 - RLlib's signature
        spaces: Any = None,  # noqa: ANN401
        rl_module_spec: Any = None,  # noqa: ANN401
        placement_group: Any = None,  # noqa: ANN401
    ) -> DeepSpeedLearnerGroup:
        """Our own group in place of RLlib's."""
        spec = rl_module_spec or self.get_multi_rl_module_spec(env=env, spaces=spaces)
        assert self.initial_policy is not None, "the algorithm makes the initial policy first"
        return DeepSpeedLearnerGroup(
            config=self, module_spec=spec, policy_files=read_policy_files(Path(self.initial_policy))
        )


class CPO(Algorithm):  # type: ignore[misc]
    """Trains a compression policy against a frozen Video-LLM."""

    actor_class: ClassVar[type[RolloutEnvRunner]] = RolloutEnvRunner
    learner_group: DeepSpeedLearnerGroup
    env_runner_group: EnvRunnerGroup | None

    @classmethod
    def of_run(cls, config: TrainConfig, folder: Path) -> "CPO":
        """The algorithm of ``config``, whose run lies in ``folder``."""
        built = CPOConfig.from_train_config(config).training(run_dir=str(folder.absolute()))
        algorithm: CPO = built.build_algo()
        return algorithm

    @classmethod
    def get_default_config(cls) -> CPOConfig:
        """The embedded default."""
        return CPOConfig()

    @classmethod
    def default_resource_request(cls, config: AlgorithmConfig | dict[str, Any]) -> PlacementGroupFactory:
        """What Tune reserves for a trial, in this order: its own bundle, those of all actors, those of the learners.

        An elastic pool has room for its ``actors.max`` actors, whether they are there or not.
        """
        resolved = cls.get_default_config().update_from_dict(config)
        actors = resolved.train_config().actors
        resolved.num_env_runners = actors.places
        asked: PlacementGroupFactory = super().default_resource_request(resolved)
        if not actors.labels:
            return asked
        learners = len(asked.bundles) - 1 - actors.places
        labels = [{}, *[actors.label_selector] * actors.places, *[{}] * learners]
        return PlacementGroupFactory(asked.bundles, strategy=asked.strategy, bundle_label_selector=labels)

    def setup(self, config: CPOConfig) -> None:
        """Prepare the items, make the initial policy, start actors and learners."""
        resolved = config if isinstance(config, CPOConfig) else self.get_default_config().update_from_dict(config)
        cfg = self.train_cfg = resolved.train_config()
        self.run_dir = Path(resolved.run_dir or self.logdir).absolute()
        self.skipped = SkippedItems(self.run_dir / "skipped.jsonl", cfg.data.max_skipped)
        items = training_items(cfg, self.run_dir, self.skipped)
        if not items:
            raise UserError(f"{cfg.data.train} holds no questions")
        self._evaluation_items: list[VideoQuestion] | None = None  # read when first needed
        if cfg.evaluation.every:
            self._to_evaluate(self._skipped_evaluation())  # a mistake in evaluation.data shows now
        self._initial_policy = self.run_dir / "initial_policy"
        self._initial_policy.mkdir(parents=True, exist_ok=True)
        for name, content in initial_policy_files(cfg).items():
            (self._initial_policy / name).write_bytes(content)
        # RLlib hands a frozen config over, and takes the given one only where it is a plain dict.
        self.config = resolved.copy(copy_frozen=False)
        self.config.initial_policy = str(self._initial_policy)
        self.config.first_video = next((item.video for item in items if Path(item.video).exists()), None)
        if cfg.data.cache_dir is None:
            self.config.training(overrides={"data.cache_dir": str(self.run_dir / "cache")})
        self.env_runner_group = None
        host = self._host() if cfg.actors.places else None
        self.pool = RolloutPool(host, cfg.actors, self._work_in_driver, cfg.run.start_timeout_s)
        try:
            self._start(items)
        except BaseException:
            self.cleanup()  # RLlib would leave actors behind
            raise

    def _start(self, items: Sequence[VideoQuestion]) -> None:
        """The learners first: rollout actors that took their places would starve them."""
        cfg = self.train_cfg
        self.config.num_env_runners = 0  # RLlib would start the actors now, and wait for them without a limit
        try:
            super().setup(self.config)
        except ray.exceptions.RayActorError as error:
            raise UserError(
                f"the learners could not start ({death_of(error).text}): see the Ray logs, or raise run.start_timeout_s"
            ) from error
        self.config.num_env_runners = cfg.actors.count
        self.pool.start()
        self.order = ItemOrder(items, cfg.run.items_per_step, cfg.run.seed)
        self.schedule = RolloutSchedule(self.pool, self.order, cfg)
        self.updates = Updates(cfg, self._encode_again)
        self.finished_steps = 0
        self.schedule.publish(0, self.learner_group.publish())

    def _host(self) -> RayHost:
        config = self.config
        resources = {
            "CPU": config.num_cpus_per_env_runner,
            "GPU": config.num_gpus_per_env_runner,
            **config.custom_resources_per_env_runner,
        }
        return RayHost(self.actor_class, config, resources, self.train_cfg.actors.label_selector)

    def _work_in_driver(self, task: Task) -> TaskResult:
        assert self.env_runner_group is not None
        result: TaskResult = self.env_runner_group.local_env_runner.sample(task=task)
        return result

    def _show_actors(self) -> None:
        """Let RLlib's own group, and so its users, see the pool's actors."""
        assert self.env_runner_group is not None
        manager = self.env_runner_group._worker_manager
        ready, shown = self.pool.handles(), dict(manager.actors())
        for number, handle in shown.items():
            if handle not in ready:
                manager.remove_actor(number)
        manager.add_actors([handle for handle in ready if handle not in shown.values()])
        for number in manager.actors():
            manager.set_actor_state(number, healthy=True)

    def go_back(self, checkpoint: Path | None) -> None:
        """Start the learners anew and go back to ``checkpoint`` of this run; None: before step 0.

        What actors have scored since, and are scoring, is used when its steps are done again.
        """
        self.learner_group.restart(read_policy_files(self._initial_policy))
        with self.schedule.going_back():
            if checkpoint is not None:
                self.restore_from_path(checkpoint)
                return
            self.finished_steps = self._iteration = 0
            self.schedule.restore(0, {}, {0: self.learner_group.publish()})
            self.updates.refill(ReplaySnapshot(()))
            self.skipped.met = self.skipped.skipped = 0

    def refit(self, updates: int, report: Callable[[int, float], None]) -> CompressionPolicy:
        """The initial policy after ``updates`` optimiser steps on the replay buffer; no combination is answered.

        What a policy learns from its first few questions seems to stay with it; a fresh one meets all at once.

        Args:
            report: Called with the number of finished updates and the loss.

        Raises:
            UserError: The replay buffer is empty: this run keeps none, or has not begun.
        """
        if not len(self.updates.replay):
            raise UserError("there are no answers to learn from: objective.replay_bytes or replay_items is 0")
        self.learner_group.restart(read_policy_files(self._initial_policy))
        self.updates.refit(self.learner_group, updates, report)
        self.schedule.publish(self.finished_steps, self.learner_group.publish())
        return self.get_policy()

    def cleanup(self) -> None:
        """End actors and learners at once, busy or not: RLlib alone would wait for the actors' tasks."""
        self.pool.close()
        if self.env_runner_group is not None:
            self._show_actors()
        super().cleanup()

    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """Nothing: the pool brings actors back, and each task carries its weights."""
        return []

    def training_step(self) -> None:
        """One training step: rollouts of ``items_per_step`` questions, then the learner's updates."""
        started = time.perf_counter()
        step = self.finished_steps
        results = self.schedule.collect(step)
        collected = time.perf_counter()
        rollouts = [rollout for result in results for rollout in result.rollouts]
        self._set_aside(results, self.skipped)
        if not rollouts:
            raise UserError(
                f"no item of training step {step} could be used, see {self.skipped.path}: "
                "mend the items or raise run.items_per_step"
            )
        losses = self.updates.learn(self.learner_group, step, results)
        self.updates.let_go(self.pool.leaving_nodes())
        self._show_actors()
        self.finished_steps = step + 1
        learnt = time.perf_counter()
        self.schedule.publish(step + 1, self.learner_group.publish())
        published = time.perf_counter()
        pool = self.pool.state()
        metrics = rollout_metrics(
            results,
            losses,
            StepMetrics(
                step=step,
                epoch=self.order.epoch_of(step + 1),
                policy_version=rollouts[0].policy_version,
                wait_seconds=collected - started,
                learn_seconds=published - collected,
                publish_seconds=published - learnt,
                published_bytes=self.schedule.newest.nbytes,
                lost_actors=self.pool.lost_actors,
                requeued_tasks=pool.requeued,
                ready_actors=pool.ready,
                wanted_actors=pool.wanted,
                replay_items=len(self.updates.replay),
                replay_bytes=self.updates.replay.nbytes,
                skipped=self.skipped.skipped,
            ),
        )
        for name, value in metrics.items():
            self.metrics.log_value((STATE, name), value, window=1)

    def _set_aside(self, results: Sequence[TaskResult], skipped: SkippedItems) -> None:
        for result in results:
            skipped.use(len(result.rollouts) + len(result.evaluations))
            for aside in result.set_aside:
                skipped.add(aside.item.id, aside.item.video, aside.reason)

    def evaluate(self, parallel_train_future: Any = None) -> dict[str, Any]:  # noqa: ANN401 - RLlib's signature
        """What the newest policy keeps and answers on ``evaluation.data``, by the rollout actors.

        Returns:
            ``{"cpo": {...}}`` with ``accuracy_R`` and ``evidence_recall_R`` for each retention R, ``full_accuracy``
            (all tokens), ``question_awareness_auc`` and ``questions``; ``TYPE_accuracy_R`` for each question type of
            the data, all tokens as R = 1.

        Raises:
            UserError: The table cannot be read, or no question of it can be used.
        """
        cfg = self.train_cfg.evaluation
        skipped = self._skipped_evaluation()
        size = self.train_cfg.actors.items_per_task
        tasks = [
            EvaluateTask(part, self.schedule.newest, cfg.retentions) for part in parts(self._to_evaluate(skipped), size)
        ]
        results = self.pool.collect(self.pool.submit(tasks))
        self._set_aside(results, skipped)
        return {STATE: evaluation_metrics([each for result in results for each in result.evaluations])}

    def _skipped_evaluation(self) -> SkippedItems:
        return SkippedItems(self.run_dir / "skipped-evaluation.jsonl", self.train_cfg.data.max_skipped)

    def _to_evaluate(self, skipped: SkippedItems) -> list[VideoQuestion]:
        if self._evaluation_items is None:
            cfg = self.train_cfg.evaluation
            self._evaluation_items = evaluation_items(cfg.data, "development", cfg.clips, self.run_dir, skipped)
        return self._evaluation_items

    @classmethod
    def _should_create_evaluation_env_runners(cls, eval_config: CPOConfig) -> bool:
        """Never: the rollout actors evaluate."""
        return False

    def get_policy(self, policy_id: str = DEFAULT_MODULE_ID) -> CompressionPolicy:
        """The policy as trained so far, on the CPU, with its metadata."""
        policy = CompressionPolicy.from_pretrained(self._initial_policy)
        policy.load_state_dict(self.schedule.newest.value())
        policy.metadata = policy.metadata.model_copy(update={"trained_steps": self.finished_steps})
        return policy

    def get_module(self, module_id: str = DEFAULT_MODULE_ID) -> CompressionModule | None:
        """A module that holds :meth:`get_policy`; None for another id (the rollout actors hold no modules)."""
        if module_id != DEFAULT_MODULE_ID:
            return None
        module: CompressionModule = self.config.get_default_rl_module_spec().build()
        module.attach(self.get_policy())
        return module

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,  # noqa: ANN401 - RLlib's signature
    ) -> dict[str, Any]:
        """RLlib's own state, the data cursor, weights of queued rollouts and the replay buffer."""
        state: dict[str, Any] = super().get_state(components, not_components=not_components, **kwargs)
        if self._check_component(STATE, components, not_components):
            state[STATE] = {
                "finished_steps": self.finished_steps,
                "versions": self.schedule.versions(),
                "published": self.schedule.weights(),
                "replay": self.updates.snapshot(),
                "skipped": {"met": self.skipped.met, "skipped": self.skipped.skipped},
            }
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken: same items, same weights for rollouts then in flight."""
        super().set_state({key: value for key, value in state.items() if key != STATE})
        if STATE not in state:
            return
        saved = state[STATE]
        self.finished_steps = saved["finished_steps"]
        self.schedule.restore(self.finished_steps, saved["versions"], saved["published"])
        self.skipped.met, self.skipped.skipped = saved["skipped"]["met"], saved["skipped"]["skipped"]
        self._refill(saved["replay"])

    def _refill(self, snapshot: ReplaySnapshot) -> None:
        unknown = [id for id in snapshot.item_ids() if id not in self.order.by_id]
        if unknown:
            raise UserError(f"question {unknown[0]!r} of the checkpoint is not in {self.train_cfg.data.train!r}")
        self.updates.refill(snapshot)

    def _encode_again(self, ids: Sequence[str], version: int | None) -> dict[str, object]:
        """Inputs of items that were rolled out before, with the logits of the policy's ``version`` if there is one."""
        weights = None if version is None else self.schedule.published(version)
        items = [self.order.by_id[id] for id in ids]
        tasks = [EncodeTask(part, weights) for part in parts(items, self.train_cfg.actors.items_per_task)]
        # Between two updates of a step: given up here, the learners would be saved in the middle of it.
        results = self.pool.collect(self.pool.submit(tasks, first=True), to_the_end=True)
        lost = [aside for result in results for aside in result.set_aside]
        if lost:
            raise UserError(f"item {lost[0].item.id!r} of the replay buffer can no longer be read: {lost[0].reason}")
        return {id: seen for result in results for id, seen in zip(result.encoded, result.inputs, strict=True)}

    def save_to_path(self, path: str | Path | None = None, **kwargs: Any) -> str:  # noqa: ANN401
        """RLlib's checkpoint, with the Video-LLM's fingerprint beside it."""
        saved = super().save_to_path(_absolute(path), **kwargs)
        (Path(saved) / MODEL).write_text(self._model_fingerprint())
        self.schedule.saved(self.finished_steps)
        return str(saved)

    def restore_from_path(self, path: str | Path, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Restore a checkpoint of this Video-LLM.

        Raises:
            UserError: There is none, or it was written with another model, learners or questions.
        """
        fingerprint = Path(path) / MODEL
        if not fingerprint.is_file():
            raise UserError(f"{path} holds no checkpoint of CPO: give a folder that save_to_path() wrote")
        found = fingerprint.read_text()
        if found != self._model_fingerprint():
            raise UserError(
                f"the checkpoint was written with another model (fingerprint {found}) than "
                f"{self.train_cfg.model.path!r} ({self._model_fingerprint()}): resume with that model or start anew"
            )
        super().restore_from_path(_absolute(path), *args, **kwargs)

    def _model_fingerprint(self) -> str:
        return CompressionPolicy.from_pretrained(self._initial_policy).metadata.model_fingerprint


def _absolute(path: str | Path | None) -> str | None:
    """A local path as RLlib and the learners' processes take it; URIs stay."""
    if path is None:
        return None
    return str(path) if "://" in str(path) else str(Path(path).absolute())
