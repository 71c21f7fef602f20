"""Loading a frozen Video-LLM from a folder, a hub id or the package itself."""

import warnings
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig
from transformers.utils.logging import disable_progress_bar

from cacovid.config import ModelConfig
from cacovid.errors import UserError
from cacovid.models.adapter import VideoLLM
from cacovid.models.internvl import InternVL
from cacovid.models.llava_next_video import LlavaNextVideo
from cacovid.models.llava_onevision import LlavaOnevision
from cacovid.models.qwen_vl import Qwen3VL, Qwen25VL
from cacovid.models.smolvlm import SmolVLM
from cacovid.models.spreading import device_map
from cacovid.models.videollama3 import VideoLlama3

FAMILIES: dict[str, type[VideoLLM]] = {
    model_type: family
    for family in (LlavaOnevision, LlavaNextVideo, Qwen25VL, Qwen3VL, SmolVLM, InternVL, VideoLlama3)
    for model_type in family.model_types
}

# What transformers raises for files that are missing, damaged or of another version.
UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    ImportError,
    RuntimeError,
    SafetensorError,
    UnpicklingError,
    StrictDataclassError,
)


def load_video_llm(config: ModelConfig) -> VideoLLM:
    """Load the Video-LLM of ``config`` frozen, on its devices, in its dtype. Code in a repository is never run.

    Raises:
        UserError: Nothing can be loaded from ``config.path``, or parameters are missing there, or its model
            type has no adapter, or the device or attention kernel asked for is not there.
    """
    path = resolve_path(config.path)
    family, settings = read_config(path, config)
    devices = resolve_devices(config.device)
    disable_progress_bar()  # the command line draws its own
    processor = load_processor(path, config)
    dtype = resolve_dtype(config.dtype, devices[0])
    try:
        if len(devices) == 1:
            model = _load_model(path, config, settings, dtype).to(devices[0])
        else:
            with warnings.catch_warnings():  # LLaVA's newline row is no module but has a place too
                warnings.filterwarnings("ignore", message="The following device_map keys do not match")
                model = _load_model(path, config, settings, dtype, _places(settings, devices))
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"model {config.path!r} does not fit {', '.join(map(str, devices))}: {_reason(error)}; "
            "`cacovid plan` says which GPUs hold it"
        ) from error
    return family(model, processor, config)


def load_processor(path: str, config: ModelConfig) -> Any:  # noqa: ANN401 - transformers has no types
    """The processor of a folder or hub id, with its chat template.

    Raises:
        UserError: A part of it is missing or damaged.
    """
    try:
        processor = AutoProcessor.from_pretrained(path, revision=config.revision, trust_remote_code=False)
    except UNREADABLE as error:
        raise UserError(
            f"cannot load the processor of {config.path!r}: {_reason(error)}. "
            "Give a whole folder as save_pretrained writes it: with tokenizer, processor and chat template"
        ) from error
    if processor.chat_template is None:
        raise UserError(f"model {config.path!r} has no chat template: add chat_template.jinja to its folder")
    return processor


def _places(settings: Any, devices: Sequence[torch.device]) -> dict[str, int | str]:  # noqa: ANN401
    """transformers' ``device_map``; GPUs by number, of which accelerate takes the smallest for the first one."""
    with torch.device("meta"):
        shape = AutoModelForImageTextToText.from_config(settings)
    names = [str(device) if device.index is None else device.index for device in devices]
    return {module: names[place] for module, place in device_map(shape, len(devices)).items()}


def _load_model(
    path: str,
    config: ModelConfig,
    settings: Any,  # noqa: ANN401
    dtype: torch.dtype,
    places: dict[str, int | str] | None = None,
) -> Any:  # noqa: ANN401
    try:
        model, report = AutoModelForImageTextToText.from_pretrained(
            path,
            config=settings,
            revision=config.revision,
            dtype=dtype,
            device_map=places,
            attn_implementation=config.attention,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, all at once
        )
    except torch.OutOfMemoryError:
        raise
    except ImportError as error:
        raise UserError(f"model.attention={config.attention!r}: {_reason(error)}; use 'sdpa'") from error
    except UNREADABLE as error:
        raise UserError(f"cannot load the model {config.path!r}: {_reason(error)}") from error
    # transformers fills such parameters with random numbers and goes on.
    wrong = sorted([*report["missing_keys"], *(name for name, *_ in report["mismatched_keys"])])
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise UserError(
            f"the weights of {config.path!r} do not fit its config.json: {wrong[0]}{more} missing or of another "
            "shape; download the model again"
        )
    return model


_EMBEDDED = {"embedded": ("model", 1), "embedded-2": ("second/model", 2)}  # folder and world


def resolve_path(path: str) -> str:
    """The folder of ``embedded``, a local folder, or the hub id as it is.

    Raises:
        UserError: ``path`` looks like a folder but is none, or the embedded model has not been built.
    """
    if path in _EMBEDDED:
        place, world = _EMBEDDED[path]
        folder = Path(str(files("cacovid"))) / "embedded" / place
        if not (folder / "config.json").is_file():
            raise UserError(
                f"the model {path!r} is not in the package: build it with `cacovid embedded build --world {world} "
                "--out DIR` and give DIR"
            )
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


def resolve_devices(name: str) -> list[torch.device]:
    """All GPUs for ``spread``, else one device as :func:`resolve_device`.

    Raises:
        UserError: As there, or there is no GPU to spread over.
    """
    if name != "spread":
        return [resolve_device(name)]
    if not torch.cuda.is_available():
        raise UserError("model.device='spread' (of actors.gpus above 1), but torch sees no GPU: use 'auto' or 'cpu'")
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())]


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
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"model.device={name!r}, but torch sees {torch.cuda.device_count()} GPUs: use 'auto'")
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 on a GPU that has it, else float32."""
    if name == "auto":
        has_bfloat16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if has_bfloat16 else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


def read_config(path: str, config: ModelConfig) -> tuple[type[VideoLLM], Any]:
    """The adapter for a folder or hub id, and its transformers configuration.

    Raises:
        UserError: No configuration can be read there, its type has no adapter, or its weights are quantised.
    """
    try:
        found = dict(PreTrainedConfig.get_config_dict(path, revision=config.revision)[0])
        family = FAMILIES.get(found.get("model_type", ""))
        settings = family and AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=False)
    except UNREADABLE as error:
        raise UserError(
            f"cannot read the configuration of {config.path!r}: {_reason(error)}. "
            "Give 'embedded', a folder with config.json, or a hub id that can be reached or is in the local cache"
        ) from error
    if family is None:
        raise UserError(f"model type {found.get('model_type')!r} of {config.path!r} has no adapter. {_remedy(found)}")
    if found.get("quantization_config"):
        raise UserError(
            f"the weights of {config.path!r} are quantised, which is not supported: give the model they were made from"
        )
    return family, settings


def _remedy(found: dict[str, Any]) -> str:
    """What to do about a configuration without adapter."""
    known = f"Known: {', '.join(sorted(FAMILIES))}; docs/new-backbone.md shows how to add one"
    if "auto_map" not in found:
        return known
    return f"Its own model code is never run: give its version for transformers (often named '...-hf'). {known}"


def _reason(error: BaseException) -> str:
    """The first line of what a library says, without its final stop."""
    if isinstance(error, UnpicklingError):
        return "a file holds more than plain tensors, take a version with safetensors"
    return str(error).strip().partition("\n")[0].rstrip(" .:")
