"""Compressed prompts as tensors for other engines.

Shape legend: k retained tokens, M pinned rows, S columns of the compressed prompt, D width.
"""

import io

import torch
from safetensors.torch import save
from torch import Tensor

from cacovid.config import Numbering
from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import Encoded
from cacovid.models.packing import kept_columns, rows_of
from serving.errors import invalid


def kept_embeddings(video_llm: VideoLLM, encoded: Encoded, kept: Tensor) -> bytes:
    """safetensors: 'embeddings' (k, D), 'indices' (k,), 'pinned' (M, D), and 'deepstack.i' (k, D) where there are."""
    tensors = {
        "embeddings": rows_of(encoded.features, kept),
        "indices": kept,
        "pinned": encoded.pinned,
        **{f"deepstack.{level}": rows_of(rows, kept) for level, rows in enumerate(encoded.deepstack)},
    }
    metadata = {
        "model_fingerprint": video_llm.fingerprint,
        "model_type": video_llm.kind,
        "grid": ",".join(map(str, encoded.grid)),
    }
    return save({name: rows.detach().cpu().contiguous() for name, rows in tensors.items()}, metadata)


def prompt_embeds(video_llm: VideoLLM, encoded: Encoded, kept: Tensor, positions: Numbering) -> bytes:
    """What vLLM's ``/v1/completions`` takes as ``prompt_embeds`` (before base64): torch.save of (S, D).

    That interface numbers positions 0..S-1 (under M-RoPE on every axis, as text) and knows rows of embeddings only,
    so that it is exact in 'contiguous' mode for models without further tower levels.

    Raises:
        ApiError: 422 where the answer would differ.
    """
    if encoded.deepstack:
        raise invalid(
            "include",
            f"prompt_embeds would lose the deepstack levels of {video_llm.kind}: "
            'serve it with the vLLM plugin, engine.kind = "vllm"',
        )
    if positions != "contiguous":
        raise invalid(
            "compression.positions", "prompt_embeds are numbered without gaps: ask for positions 'contiguous'"
        )
    rows = dense_prompt(encoded, kept).detach().cpu().contiguous()
    buffer = io.BytesIO()
    torch.save(rows, buffer)
    return buffer.getvalue()


def dense_prompt(encoded: Encoded, kept: Tensor) -> Tensor:
    """(S, D) embeddings of every column that remains, in prompt order."""
    columns = kept_columns(encoded, kept[None])[0]
    text = torch.isin(columns, encoded.text_columns)
    rows = encoded.text_embeds.new_empty(len(columns), encoded.features.shape[1], dtype=encoded.features.dtype)
    rows[text] = encoded.text_embeds.to(rows.dtype)
    rows[~text] = rows_of(encoded.features, kept)
    return rows
