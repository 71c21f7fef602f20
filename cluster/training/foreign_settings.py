"""RLlib settings that mean nothing to CPO: refused with their counterpart, never silently ignored."""

from functools import cache
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from cacovid.errors import UserError

COUNTERPARTS = {
    "lr": "training(overrides={'optimizer.lr': ...})",
    "grad_clip": "training(overrides={'optimizer.grad_norm': ...})",
    "_train_batch_size_per_learner": "'run.items_per_step' and 'objective.replay_batch' in training(overrides=...)",
    "train_batch_size": "'run.items_per_step' and 'objective.replay_batch' in training(overrides=...)",
    "minibatch_size": "training(overrides={'learners.micro_batch_tokens': ...})",
    "num_epochs": "training(overrides={'objective.replay_updates': ...})",
    "gamma": "nothing: a rollout has no time steps",
    "env": "training(overrides={'data.train': 'questions.parquet'})",
    "num_envs_per_env_runner": "training(overrides={'actors.items_per_task': ...})",
    "rollout_fragment_length": "training(overrides={'run.items_per_step': ...})",
    "seed": "training(overrides={'run.seed': ...})",
    "evaluation_num_env_runners": "nothing: the rollout actors evaluate",
    "evaluation_parallel_to_training": "nothing: the rollout actors evaluate",
    "evaluation_duration": "training(overrides={'evaluation.clips': ...})",
    "custom_evaluation_function": "nothing: see CPO.evaluate()",
}


def refuse_foreign_settings(config: AlgorithmConfig) -> None:
    """Raise UserError for the first setting of :data:`COUNTERPARTS` that is not as RLlib leaves it."""
    for name, usual in _usual().items():
        value = config.get(name)
        if value != usual:
            raise UserError(f"{name.lstrip('_')}={value!r} has no effect on CPO: use {COUNTERPARTS[name]}")


@cache
def _usual() -> dict[str, Any]:
    plain = AlgorithmConfig()
    return {name: plain.get(name) for name in COUNTERPARTS}
