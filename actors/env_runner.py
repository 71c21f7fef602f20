"""The rollout actor: an RLlib EnvRunner around one frozen Video-LLM reader.

The problem is a contextual bandit with combinatorial actions: there is no gym environment, so the
spaces are dummies and ``sample`` takes the task that the driver hands out.
"""

import time
import traceback
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import gymnasium
import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable

from actors.replica import ReplicaActor
from actors.task import EncodeTask, EvaluateTask, PolicyTask, PublishedWeights, RolloutTask, SetAside, TaskResult
from cacovid.config import TrainConfig
from cacovid.data.reader import ItemReader
from cacovid.errors import BadItem
from cacovid.evaluation.measuring import evaluate
from cacovid.evaluation.question import Answer
from cacovid.evaluation.result import EvaluationResult
from cacovid.gpu_memory import held_bytes
from cacovid.methods.policy_method import PolicyMethod
from cacovid.policy.base import CompressionPolicy
from cacovid.policy.build import policy_for
from cacovid.records import Rollout, RolloutInput, RolloutRecord, VideoQuestion
from cacovid.rollout import RolloutRequest, look_again, roll_out

Space: TypeAlias = gymnasium.Space[Any]
DUMMY_SPACE: Space = gymnasium.spaces.Discrete(1)


class RolloutEnvRunner(ReplicaActor, EnvRunner, Checkpointable):  # type: ignore[misc]
    """Holds one replica and the weights last used; scores the combinations of its tasks."""

    def __init__(self, *, config: Any, **kwargs: Any) -> None:  # noqa: ANN401 - RLlib's signature
        super().__init__(config=config, **kwargs)
        self.first_video = config.first_video
        self.train_config: TrainConfig = config.train_config()
        self._reader: ItemReader | None = None
        self._policy: CompressionPolicy | None = None
        self._weights_id: str | None = None
        self._full: dict[str, Answer] = {}  # the frozen model's, from all tokens, of questions evaluated before
        if self.worker_index:
            torch.set_num_threads(self.train_config.actors.threads)

    def _load(self) -> tuple[ItemReader, CompressionPolicy]:
        if self._reader is None or self._policy is None:
            cfg = self.train_config
            cache = Path(cfg.data.cache_dir) if cfg.data.cache_dir else None
            reader = ItemReader.load(cfg.replica_model(), cfg.data, cache)
            self._policy = policy_for(reader.video_llm, cfg).to(reader.video_llm.device).eval()
            self._reader = reader
        return self._reader, self._policy

    def sample(self, task: PolicyTask | None = None, **kwargs: Any) -> TaskResult:  # noqa: ANN401
        """Work on one task. Bad items are set aside; any other failure comes back in ``error``."""
        if task is None:
            raise ValueError("sample() needs a task: the CPO algorithm hands them out")
        reader, policy = self._load()
        started, encoded_before = time.perf_counter(), reader.encode_seconds
        try:
            outcome = self._run(task, reader, policy)
        except Exception:  # noqa: BLE001 - an exception would end the actor and lose its cause; the driver decides
            outcome = {"error": traceback.format_exc()}
        return TaskResult(
            seconds=time.perf_counter() - started,
            encode_seconds=reader.encode_seconds - encoded_before,
            gpu_bytes=held_bytes(),
            **outcome,
        )

    def sample_apart(self, task: PolicyTask) -> tuple[TaskResult | RolloutInput | None, ...]:
        """:meth:`sample` as 1 + len(task.items) objects: the result, then its inputs (None behind the last one)."""
        result = self.sample(task)
        missing = len(task.items) - len(result.inputs)
        return (replace(result, inputs=()), *result.inputs, *[None] * missing)

    def _run(self, task: PolicyTask, reader: ItemReader, policy: CompressionPolicy) -> dict[str, Any]:
        aside: list[SetAside] = []
        rollouts: list[Rollout] = []
        encoded: list[str] = []
        inputs: list[RolloutInput] = []
        evaluations: list[EvaluationResult] = []
        if task.weights is not None:
            self._use_weights(task.weights, policy)
        for item in task.items:
            try:
                match task:
                    case RolloutTask():
                        rollout, seen = self._roll_out(item, task, reader, policy).parts()
                        rollouts.append(rollout)
                        if task.part.number == 0:
                            inputs.append(seen)
                    case EvaluateTask():
                        evaluations.append(self._evaluate(item, task, reader, policy))
                    case EncodeTask():
                        inputs.append(look_again(reader.encode(item), policy if task.weights else None))
                        encoded.append(item.id)
            except BadItem as error:
                aside.append(SetAside(item, str(error)))
        return {
            "rollouts": tuple(rollouts),
            "encoded": tuple(encoded),
            "inputs": tuple(inputs),
            "input_bytes": tuple(seen.nbytes() for seen in inputs),
            "evaluations": tuple(evaluations),
            "set_aside": tuple(aside),
        }

    def _roll_out(
        self, item: VideoQuestion, task: RolloutTask, reader: ItemReader, policy: CompressionPolicy
    ) -> RolloutRecord:
        cfg = self.train_config
        request = RolloutRequest(
            seed=cfg.run.seed,
            step=task.step,
            policy_version=task.weights.version,
            tokens_per_frame=task.tokens_per_frame,
            part=task.part,
            explore=task.explore,
        )
        return roll_out(reader.video_llm, policy, reader.encode(item), item, cfg.sampling, request)

    def _evaluate(
        self, item: VideoQuestion, task: EvaluateTask, reader: ItemReader, policy: CompressionPolicy
    ) -> EvaluationResult:
        method = PolicyMethod("policy", policy, self.train_config.selection)
        return evaluate(reader, [method], [item], task.retentions, seed=self.train_config.run.seed, full=self._full)

    def _use_weights(self, weights: PublishedWeights, policy: CompressionPolicy) -> None:
        """Load the task's weights unless in use."""
        if self._weights_id != weights.id:
            policy.load_state_dict(weights.value())
            self._weights_id = weights.id

    def assert_healthy(self) -> None:
        """RLlib calls this on each new actor."""
        assert self.train_config is not None

    def get_spaces(self) -> dict[str, tuple[Space, Space]]:
        """Dummy spaces: there is no environment."""
        return {INPUT_ENV_SPACES: (DUMMY_SPACE, DUMMY_SPACE), DEFAULT_MODULE_ID: (DUMMY_SPACE, DUMMY_SPACE)}

    def get_metrics(self) -> Any:  # noqa: ANN401
        """RLlib's metrics of this actor (ours travel with each result)."""
        return self.metrics.reduce()

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **kwargs: Any,  # noqa: ANN401
    ) -> dict[str, Any]:
        """Nothing to save: a rollout depends on its task alone."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing to restore; the next task brings its weights."""

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[()], dict[str, Any]]:
        """Arguments that build the same actor."""
        return (), {"config": self.config}

    def get_checkpointable_components(self) -> list[tuple[str, Checkpointable]]:
        """None."""
        return []
