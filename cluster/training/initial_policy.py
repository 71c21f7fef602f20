"""The policy that training starts from, made once where the Video-LLM can be loaded."""

import tempfile
from pathlib import Path

import ray
import torch

from cacovid.config import TrainConfig
from cacovid.errors import UserError
from cacovid.models.loading import load_video_llm
from cacovid.policy.build import policy_for
from learner.deepspeed_learner import PolicyFiles


def initial_policy_files(config: TrainConfig) -> PolicyFiles:
    """File name -> content of the untrained policy's folder, as ``save_pretrained`` writes it.

    Runs on an actor's resources unless the rollouts run in the driver anyway: the paper's policy copies
    the Video-LLM's first layer, and the driver should not need the memory of a whole model.

    Raises:
        UserError: The model cannot be loaded, or the cluster has no room for one rollout actor.
    """
    if not config.actors.places:
        return _make(config)
    remote = ray.remote(
        num_cpus=config.actors.cpus,
        num_gpus=config.actors.gpus,
        label_selector=config.actors.label_selector or None,
        max_retries=2,
    )(_make)
    made = remote.remote(config)
    try:
        files: PolicyFiles = ray.get(made, timeout=config.run.start_timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(made)
        raise UserError(
            f"the initial policy was not made within {config.run.start_timeout_s:.0f} s: see that the cluster has room "
            f"for a rollout actor of {config.actors.cpus:g} CPUs and {config.actors.gpus:g} GPUs, or raise "
            "run.start_timeout_s"
        ) from error
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    return files


def read_policy_files(folder: Path) -> PolicyFiles:
    """File name -> content of a saved policy's folder."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _make(config: TrainConfig) -> PolicyFiles:
    # Orthogonal initialisation differs in its last digits with the number of threads.
    torch.set_num_threads(config.actors.threads)
    video_llm = load_video_llm(config.replica_model())
    policy = policy_for(video_llm, config)
    with tempfile.TemporaryDirectory() as folder:
        policy.save_pretrained(folder)
        return read_policy_files(Path(folder))
