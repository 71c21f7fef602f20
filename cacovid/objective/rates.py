"""The learning rates of an optimiser's two parameter groups: the heads', and the pretrained layer's share of it."""

from typing import Any

from torch.optim import Optimizer

from cacovid.config import OptimizerConfig
from cacovid.objective.schedule import learning_rate_multiplier
from cacovid.policy.base import CompressionPolicy


def rate_groups(policy: CompressionPolicy, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser; ``scale`` is the group's share of the rate (paper, training settings)."""
    heads, pretrained = policy.parameter_groups()
    groups = [{"params": heads, "lr": config.lr, "scale": 1.0}]
    if pretrained:
        scale = config.backbone_scale
        groups.append({"params": pretrained, "lr": config.lr * scale, "scale": scale})
    return groups


def set_rates(optimizer: Optimizer, config: OptimizerConfig, update: int, total: int) -> float:
    """The rates of optimiser step ``update`` (0-based) of ``total``; returns the heads'."""
    rate = config.lr * learning_rate_multiplier(config.schedule, update, total, config.warmup_steps)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
    return rate
