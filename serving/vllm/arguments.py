"""How vLLM is started beside a Video-LLM that encodes."""

from typing import Any

import torch
from vllm.engine.arg_utils import AsyncEngineArgs

from cacovid.errors import UserError
from cacovid.models.adapter import VideoLLM
from cacovid.models.loading import resolve_path
from serving.config import GIB, EngineConfig
from serving.vllm.names import ARCHITECTURE, LANGUAGE_MODELS, MODALITY

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def engine_arguments(video_llm: VideoLLM, config: EngineConfig) -> AsyncEngineArgs:
    """vLLM's arguments for the language model of ``video_llm``.

    Raises:
        UserError: the language model is of a kind that the plugin does not know.
    """
    text = video_llm.model.config.get_text_config()
    if text.model_type not in LANGUAGE_MODELS:
        raise UserError(
            f"engine.kind='vllm' does not know the language model {text.model_type!r} of this model: "
            f"use engine.kind='transformers', or one with {', '.join(LANGUAGE_MODELS)}"
        )
    own, cuda = config.vllm, video_llm.device.type == "cuda"
    longest = min(int(text.max_position_embeddings), config.max_prompt_tokens + config.max_tokens)
    kv_cache = own.kv_cache_bytes if cuda or own.kv_cache_bytes is not None else GIB
    return AsyncEngineArgs(
        model=resolve_path(video_llm.config.path),
        revision=video_llm.config.revision,
        dtype=_DTYPES[video_llm.dtype],
        hf_overrides=_overrides(video_llm, text),
        generation_config="vllm",  # the service draws by its own rules, not by the repository's defaults
        max_model_len=longest,
        gpu_memory_utilization=own.gpu_memory_utilization,
        kv_cache_memory_bytes=kv_cache,
        tensor_parallel_size=own.tensor_parallel_size,
        distributed_executor_backend="ray" if own.spans_nodes else None,
        max_num_seqs=own.max_sequences,
        max_num_batched_tokens=own.max_step_tokens,
        enable_prefix_caching=own.prefix_caching,
        enable_chunked_prefill=True,
        limit_mm_per_prompt={MODALITY: 1},
        mm_processor_cache_gb=0,  # positions come with every request: see serving.vllm.model
        skip_mm_profiling=True,
        logits_processors=["serving.vllm.draws:SeededDraws"],
        enforce_eager=not cuda,
    )


def _overrides(video_llm: VideoLLM, text: Any) -> dict[str, Any]:  # noqa: ANN401
    """What vLLM is to read in the model's configuration: our class, and positions by the request.

    vLLM leaves positions to the model where the configuration has M-RoPE. Families without it name its sections
    here, at two places, of which one vLLM release reads this one and another that one; the language model's own
    configuration has none, so that it computes as ever.
    """
    model = video_llm.model
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    changed: dict[str, Any] = {"architectures": [ARCHITECTURE], "text_config": {"tie_word_embeddings": tied}}
    if "mrope_section" not in (text.rope_parameters or {}):
        sections = [1, 1, 1]  # three rows of positions; how wide they are nobody asks
        changed |= {"mrope_section": sections, "rope_parameters": {"mrope_section": sections}}
    return changed
