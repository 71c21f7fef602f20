"""What this process holds of its GPUs' memory."""

import torch


def held_bytes() -> int:
    """Bytes that torch has reserved on all GPUs for this process; 0 without CUDA."""
    if not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.memory_reserved(device) for device in range(torch.cuda.device_count()))
