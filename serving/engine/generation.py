"""The transformers engine: answers in static batches, one batch after the other.

    rows -> those that keep equally many tokens together -> parts of at most max_batch_tokens -> generate

Prompts that are answered together may differ in length: they are padded on the left.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

import torch
from prometheus_client import Metric
from transformers import LogitsProcessorList, StoppingCriteriaList

from cacovid.models.adapter import VideoLLM
from serving.config import EngineConfig
from serving.engine.decoding import Row, RowSampler, RowWatcher
from serving.engine.grouping import grouped
from serving.engine.join import join
from serving.engine.prompts import Prompt
from serving.engine.refusals import refusals


class StaticBatches:
    """The Video-LLM's own language model behind :class:`serving.engine.answerer.Answerer`."""

    def __init__(self, video_llm: VideoLLM, config: EngineConfig) -> None:
        self._llm = video_llm
        self._config = config

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """There is nothing to start."""

    def begin(self, rows: Sequence[Row]) -> None:
        """Answer them all; returns when that is done."""
        for group in grouped(rows, lambda row: _answered_together(row.prompt)):
            for part in self._parts(group):
                with refusals(*(row.prompt.job for row in part)):
                    self._generate(part)

    def fault(self) -> str | None:
        """None: a batch that hangs is seen by who started it."""
        return None

    def metrics(self) -> list[Metric]:
        """It has none of its own."""
        return []

    def stop(self) -> None:
        """There is nothing to stop."""

    def _parts(self, group: list[Row]) -> list[list[Row]]:
        """Batches of at most ``max_batch_tokens`` tokens (but at least one request), padding included."""
        parts: list[list[Row]] = []
        longest = 0
        for row in group:
            length = row.prompt.length + row.decoding.max_tokens
            longest = max(longest, length)
            if parts and longest * (len(parts[-1]) + 1) <= self._config.max_batch_tokens:
                parts[-1].append(row)
            else:
                parts.append([row])
                longest = length
        return parts

    @torch.inference_mode()
    def _generate(self, rows: Sequence[Row]) -> None:
        """Draw tokens until every answer is whole."""
        prompts = [row.prompt for row in rows]
        llm = self._llm
        packed = [llm.pack(prompt.encoded, prompt.kept[None].to(llm.device), prompt.positions) for prompt in prompts]
        arguments: dict[str, Any] = join(packed, pad_token=int(llm.model.generation_config.pad_token_id))
        llm.model.generate(
            **arguments,
            max_new_tokens=max(row.decoding.max_tokens for row in rows),
            use_cache=True,
            logits_processor=LogitsProcessorList([RowSampler([row.decoding for row in rows])]),
            stopping_criteria=StoppingCriteriaList([RowWatcher(rows, llm.end_tokens)]),
        )


def _answered_together(prompt: Prompt) -> object:
    """Equally many injected rows, and equally many rows of positions."""
    rows = len(prompt.kept) + prompt.encoded.pinned.shape[0]
    return rows, prompt.encoded.position_ids.shape[0]
