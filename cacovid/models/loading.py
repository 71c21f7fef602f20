"""Loading a frozen Video-LLM from a folder, a hub id or the package itself."""

from importlib.resources import files
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor
from transformers.utils.logging import disable_progress_bar

from cacovid.config import ModelConfig
from cacovid.errors import UserError
from cacovid.models.adapter import VideoLLM
from cacovid.models.internvl import InternVL
from cacovid.models.llava_next_video import LlavaNextVideo
from cacovid.models.llava_onevision import LlavaOnevision
from cacovid.models.qwen_vl import Qwen3VL, Qwen25VL
from cacovid.models.smolvlm import SmolVLM
from cacovid.models.videollama3 import VideoLlama3

FAMILIES: dict[str, type[VideoLLM]] = {
    model_type: family
    for family in (LlavaOnevision, LlavaNextVideo, Qwen25VL, Qwen3VL, SmolVLM, InternVL, VideoLlama3)
    for model_type in family.model_types
}


def load_video_llm(config: ModelConfig) -> VideoLLM:
    """Load the Video-LLM of ``config`` frozen, on its device, in its dtype.

    Raises:
        UserError: Nothing can be loaded from ``config.path``, or its model type has no adapter, or the
            device or attention kernel asked for is not there.
    """
    path = resolve_path(config.path)
    family = FAMILIES[family_of(path, config)]
    device = resolve_device(config.device)
    disable_progress_bar()  # the command line draws its own
    try:
        processor = AutoProcessor.from_pretrained(path, revision=config.revision)
        model = AutoModelForImageTextToText.from_pretrained(
            path,
            revision=config.revision,
            dtype=resolve_dtype(config.dtype, device),
            attn_implementation=config.attention,
        )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"cannot load the model {config.path!r}: {_first_line(error)}") from error
    if processor.chat_template is None:
        raise UserError(f"model {config.path!r} has no chat template: add chat_template.jinja to its folder")
    return family(model.to(device), processor, config)


def resolve_path(path: str) -> str:
    """The folder of ``embedded``, a local folder, or the hub id as it is.

    Raises:
        UserError: ``path`` looks like a folder but is none, or the embedded model has not been built.
    """
    if path == "embedded":
        folder = Path(str(files("cacovid.embedded"))) / "model"
        if not (folder / "config.json").is_file():
            raise UserError("the embedded model is missing from the package: run `cacovid embedded build`")
        return str(folder)
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"folder {path!r} holds no config.json: give the folder of a saved Hugging Face model")
        return str(folder)
    if looks_local:
        raise UserError(f"model folder {path!r} does not exist: give 'embedded', an existing folder or a hub id")
    return path


def resolve_device(name: str) -> torch.device:
    """``auto`` takes the GPU where there is one.

    Raises:
        UserError: No such device name, or a GPU asked for where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"model.device={name!r} is no torch device: use 'auto', 'cpu' or 'cuda:0'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"model.device={name!r}, but torch sees no GPU: use 'auto' or 'cpu'")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on a GPU that has it, else float32."""
    if name == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def family_of(path: str, config: ModelConfig) -> str:
    """The model type of a folder or hub id, one of :data:`FAMILIES`.

    Raises:
        UserError: No configuration can be read there, or its type has no adapter.
    """
    try:
        model_type: str = AutoConfig.from_pretrained(path, revision=config.revision).model_type
    except OSError as error:
        raise UserError(
            f"cannot read the configuration of {config.path!r}: {_first_line(error)} "
            "Give 'embedded', a folder with config.json, or a hub id that can be reached or is in the local cache"
        ) from error
    except ValueError as error:  # a model type that transformers does not know either
        raise UserError(f"{config.path!r}: {_first_line(error)} {_known_types()}") from error
    if model_type not in FAMILIES:
        raise UserError(f"model type {model_type!r} of {config.path!r} has no adapter. {_known_types()}")
    return model_type


def _known_types() -> str:
    return f"Known: {', '.join(sorted(FAMILIES))}; docs/new-backbone.md shows how to add one"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
