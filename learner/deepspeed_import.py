"""DeepSpeed, imported only where a learner runs, and told what it would otherwise guess or compile."""

import importlib
import os
from types import ModuleType

import torch


def import_deepspeed(device: torch.device) -> ModuleType:
    """The ``deepspeed`` module, set up for ``device``.

    Its accelerator is named (it would warn while guessing the CPU), and its shared-memory kernel is not
    built: that needs a C++ compiler and a minute at first use, where gloo serves as well.
    """
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    deepspeed = importlib.import_module("deepspeed")
    operators = importlib.import_module("deepspeed.ops")
    operators.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
