"""AdamW on float32 masters of a policy's weights, as DeepSpeed keeps them beside bfloat16 ones."""

import torch
from torch import nn

from cacovid.config import OptimizerConfig


class MixedPrecisionAdamW:
    """Steps the float32 masters and copies them back; float32 weights are their own masters."""

    def __init__(self, module: nn.Module, config: OptimizerConfig) -> None:
        self.weights = list(module.parameters())
        self.masters = [
            weight if weight.dtype == torch.float32 else nn.Parameter(weight.detach().float())
            for weight in self.weights
        ]
        self.grad_norm = config.grad_norm
        self.optimizer = torch.optim.AdamW(self.masters, lr=config.lr, eps=config.eps, weight_decay=config.weight_decay)

    @torch.no_grad()
    def step(self) -> None:
        """Clip the gradients, step, and leave the module without gradients."""
        for weight, master in zip(self.weights, self.masters, strict=True):
            master.grad = None if weight.grad is None else weight.grad.float()
        torch.nn.utils.clip_grad_norm_(self.masters, self.grad_norm)
        self.optimizer.step()
        for weight, master in zip(self.weights, self.masters, strict=True):
            if weight is not master:
                weight.copy_(master)
            weight.grad = master.grad = None
