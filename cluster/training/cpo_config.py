"""``CPOConfig``: the run's configuration as RLlib users expect it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from actors.env_runner import DUMMY_SPACE, RolloutEnvRunner
from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cluster.training.foreign_settings import refuse_foreign_settings
from cluster.training.initial_policy import read_policy_files
from learner.deepspeed_learner import DeepSpeedLearner
from learner.group import DeepSpeedLearnerGroup
from learner.module import CompressionModule

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
    """Configures :class:`cluster.training.cpo.CPO`.

    ``CPOConfig().env_runners(num_env_runners=2).learners(num_learners=1)`` works as for any RLlib
    algorithm; everything else is one :class:`TrainConfig`, given whole or as dotted overrides::

        CPOConfig().training(overrides={"run.steps": 20, "optimizer.lr": 1e-3}).build_algo().train()
    """

    def __init__(self, algo_class: type | None = None) -> None:
        from cluster.training.cpo import CPO

        super().__init__(algo_class=algo_class or CPO)
        self.base = TrainConfig()
        self.overrides: dict[str, Any] = {}
        self.run_dir: str | None = None
        self.initial_policy: str | None = None  # folder, once the algorithm has made it
        self.env_runner_cls = RolloutEnvRunner
        self.observation_space = DUMMY_SPACE
        self.action_space = DUMMY_SPACE
        self.create_local_env_runner = False
        self.restart_failed_env_runners = True
        self.delay_between_env_runner_restarts_s = 1.0
        self.env_runner_health_probe_timeout_s = 0.2
        self.max_requests_in_flight_per_env_runner = 4
        self.validate_env_runners_after_construction = False
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
