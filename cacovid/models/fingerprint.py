"""What identifies a frozen model: its architecture and a sample of its weights."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

# Tensors up to this many elements are hashed whole, larger ones at this many even places.
SAMPLE = 4096
# Entries of a configuration that say how a model was stored or is run, not what it computes.
VOLATILE = frozenset(
    {
        "_attn_implementation",
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "attn_implementation",
        "dtype",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)


def model_fingerprint(model: nn.Module, config: dict[str, Any]) -> str:
    """16 hex digits over ``config`` and every weight's name, shape and sampled values.

    Values are rounded to bfloat16 first, so that a model loaded as float32 or bfloat16, on any
    device and in any process, has one fingerprint. Costs one small copy per tensor.
    """
    digest = hashlib.blake2b(stable_json(config).encode(), digest_size=8)
    for name, weight in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        digest.update(_sampled_bytes(weight))
    return digest.hexdigest()


def stable_json(value: Any) -> str:  # noqa: ANN401  (any JSON value)
    """JSON with sorted keys and without the volatile entries, at any depth."""
    return json.dumps(_without_volatile(value), sort_keys=True, default=str)


def text_digest(*parts: str) -> str:
    """16 hex digits over ``parts``."""
    return hashlib.blake2b("\x1f".join(parts).encode(), digest_size=8).hexdigest()


def _without_volatile(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {str(key): _without_volatile(each) for key, each in value.items() if key not in VOLATILE}
    if isinstance(value, list | tuple):
        return [_without_volatile(each) for each in value]
    return value


def _sampled_bytes(weight: Tensor) -> bytes:
    flat = weight.detach().reshape(-1)
    if flat.numel() > SAMPLE:
        flat = flat[torch.arange(SAMPLE, device=flat.device) * flat.numel() // SAMPLE]
    if flat.is_floating_point():
        flat = flat.to(torch.bfloat16).view(torch.int16)
    return flat.cpu().numpy().tobytes()
