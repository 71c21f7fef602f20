"""The policy that training starts from, made once where the Video-LLM can be loaded."""

import tempfile
from pathlib import Path

import ray
import torch

from cacovid.config import TrainConfig
from cacovid.model_policy import policy_for
from cacovid.models.loading import load_video_llm
from learner.deepspeed_learner import PolicyFiles


def initial_policy_files(config: TrainConfig) -> PolicyFiles:
    """File name -> content of the untrained policy's folder, as ``save_pretrained`` writes it.

    Runs on an actor's resources unless the rollouts run in the driver anyway: the paper's policy copies
    the Video-LLM's first layer, and the driver should not need the memory of a whole model.
    """
    if config.actors.count == 0:
        return _make(config)
    remote = ray.remote(num_cpus=config.actors.cpus, num_gpus=config.actors.gpus, max_retries=2)(_make)
    try:
        files: PolicyFiles = ray.get(remote.remote(config))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    return files


def _make(config: TrainConfig) -> PolicyFiles:
    # Orthogonal initialisation differs in its last digits with the number of threads.
    torch.set_num_threads(config.actors.threads)
    video_llm = load_video_llm(config.model)
    policy = policy_for(video_llm, config)
    with tempfile.TemporaryDirectory() as folder:
        policy.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}
