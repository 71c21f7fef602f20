"""Policies on disk: our own folder of weights and card, and the tensors of published checkpoints.

``save_pretrained`` and ``from_pretrained`` of :class:`~cacovid.policy.base.CompressionPolicy` come here with
what they hold: a card and named tensors. No network is known here. Pickles are loaded with
``weights_only``: no code of a checkpoint ever runs.
"""

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from cacovid.atomic import writing
from cacovid.config import PolicyConfig, Positions, Section, SelectionConfig
from cacovid.errors import UserError
from cacovid.policy.decoder_layer import LayerSpec
from cacovid.policy_folder import CARD

WEIGHTS = "policy.safetensors"
WHOLE = ("model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin")
TORCH_ENDINGS = (".bin", ".pt", ".pth")
KNOWN = "a folder of a saved model, a .safetensors, .bin, .pt or .pth file, or an index.json of shards"

Found = tuple[dict[str, Tensor], int]  # tensors below the prefix by the rest of their names; number of all others


class PolicyMetadata(Section):
    """What a saved policy says about where it belongs."""

    model_fingerprint: str = Field("", description="fingerprint of the Video-LLM it was trained with; '' if unknown")
    model_type: str = Field("", description="that model's config.model_type")
    model_path: str = Field("", description="where that model was loaded from")
    trained_steps: int = Field(0, ge=0, description="training steps behind these weights")
    selection: SelectionConfig = Field(SelectionConfig(), description="selection rule to use by default")
    num_frames: int = Field(8, ge=1, description="frames sampled from each video in training")
    positions: Positions = Field("original", description="position ids that retained tokens had in training")
    trained_length: int | None = Field(None, ge=1, description="model.trained_length of training")
    instruction: str = Field("", description="line appended to multiple-choice prompts in training")


class PolicyCard(Section):
    """The contents of ``policy.json``."""

    format: Literal[1] = 1
    hidden_size: int
    config: PolicyConfig
    layer: LayerSpec | None = None
    metadata: PolicyMetadata


def write_policy(folder: Path, card: PolicyCard, state: dict[str, Tensor]) -> None:
    """Write ``policy.safetensors`` and ``policy.json`` into ``folder``, each atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    # Not save_file: its files are their owner's alone, and a service runs under a user of its own.
    with writing(folder / WEIGHTS) as part:
        part.write_bytes(save(tensors))
    with writing(folder / CARD) as part:
        part.write_text(json.dumps(card.model_dump(mode="json"), indent=2) + "\n", encoding="utf-8")


def read_card(path: Path) -> PolicyCard:
    """What ``policy.json`` says. Raises UserError when it is missing or damaged."""
    try:
        content: Any = json.loads((path / CARD).read_text(encoding="utf-8"))
        return PolicyCard.model_validate(content)
    except FileNotFoundError as error:
        raise UserError(f"{path} holds no {CARD}: give the 'policy' folder of a training run") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path / CARD} is no JSON ({error}): save the policy again") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{path / CARD}: {where}: {first['msg']}: save the policy again with this version") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of ``policy.safetensors`` by name. Raises UserError when it is missing or damaged."""
    try:
        return load_file(path / WEIGHTS)
    except FileNotFoundError as error:
        raise UserError(f"{path} holds no {WEIGHTS}: give the 'policy' folder of a training run") from error
    except SafetensorError as error:
        raise UserError(f"{path / WEIGHTS} cannot be read ({error}): copy it again") from error


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
