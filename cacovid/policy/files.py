"""Tensors of a published checkpoint, read from the usual files; of a whole model only those asked for.

Pickles are loaded with ``weights_only``: no code of a checkpoint ever runs.
"""

import json
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cacovid.errors import UserError

WHOLE = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
TORCH_ENDINGS = (".bin", ".pt", ".pth")
KNOWN = "a folder of a saved model, a .safetensors, .bin, .pt or .pth file, or an index.json of shards"

Found = tuple[dict[str, Tensor], int]  # tensors below the prefix by the rest of their names; number of all others


def read_tensors(checkpoint: Path, prefix: str) -> Found:
    """Every tensor whose name begins with ``prefix``, by the rest of its name, and how many others there are.

    Args:
        checkpoint: A folder, one file, or the index of a sharded checkpoint.
        prefix: Only tensors below it are read from disk.

    Raises:
        UserError: No such checkpoint, an unknown or damaged file, a shard that is missing.
    """
    path = _entry(checkpoint)
    if path.suffix != ".json":
        return _read(path, prefix)
    weight_map = _weight_map(path)
    wanted = {name: shard for name, shard in weight_map.items() if name.startswith(prefix)}
    state: dict[str, Tensor] = {}
    for shard in sorted(set(wanted.values())):
        if Path(shard).name != shard or not (path.parent / shard).is_file():
            raise UserError(f"{path} names the shard {shard!r}, which does not lie beside it: copy it again")
        state |= _read(path.parent / shard, prefix)[0]
    return state, len(weight_map) - len(wanted)


def _entry(checkpoint: Path) -> Path:
    """The file to begin with."""
    if checkpoint.is_file():
        return checkpoint
    if not checkpoint.is_dir():
        raise UserError(f"checkpoint {checkpoint} does not exist: give {KNOWN}")
    for name in WHOLE:
        if (checkpoint / name).is_file():
            return checkpoint / name
    found = sorted(path.name for path in checkpoint.iterdir() if path.suffix in (".safetensors", *TORCH_ENDINGS))
    if len(found) == 1:
        return checkpoint / found[0]
    raise UserError(
        f"folder {checkpoint} holds neither {WHOLE[1]} nor an index (weights found: {', '.join(found) or 'none'}): "
        "name one file"
    )


def _weight_map(path: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(shard) for name, shard in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no index of shards (a JSON object with 'weight_map'): give {KNOWN}") from error


def _read(path: Path, prefix: str) -> Found:
    if path.suffix == ".safetensors":
        return _read_safetensors(path, prefix)
    if path.suffix in TORCH_ENDINGS:
        return _read_torch(path, prefix)
    raise UserError(f"{path} is no kind of checkpoint known here: give {KNOWN}")


def _read_safetensors(path: Path, prefix: str) -> Found:
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            wanted = [name for name in names if name.startswith(prefix)]
            state = {name.removeprefix(prefix): file.get_tensor(name) for name in wanted}
    except SafetensorError as error:
        raise UserError(f"{path} cannot be read ({error}): copy it again") from error
    return state, len(names) - len(wanted)


def _read_torch(path: Path, prefix: str) -> Found:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} cannot be read: it is damaged or older than torch 1.6; save it again")
    try:
        # Mapped, so that of a whole model only the policy's tensors are read.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, LookupError, pickle.UnpicklingError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UserError(f"{path} cannot be read as plain tensors ({reason}): save the state dict alone") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{path} is no state dict (names of tensors): save the state dict alone")
    state = {str(name).removeprefix(prefix): value for name, value in content.items() if str(name).startswith(prefix)}
    return state, len(content) - len(state)
