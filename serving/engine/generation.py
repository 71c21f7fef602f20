"""The transformers engine: answers are written together, whatever their prompts' lengths.

    rows -> wait for room (max_batch_tokens) -> prompts of about one length in one pass -> the running batch

Between two tokens whole answers leave the batch and waiting ones join it.
"""

import asyncio
from collections.abc import Sequence

from prometheus_client import Metric

from cacovid.models.adapter import VideoLLM
from serving.config import EngineConfig
from serving.engine.batch import RunningBatch, of_one_length
from serving.engine.decoding import Answering, Row
from serving.engine.records import Decoding, Failed
from serving.engine.refusals import refusals
from serving.errors import ApiError, overloaded


class JoiningBatches:
    """The Video-LLM's own language model behind :class:`serving.engine.answerer.Answerer`."""

    def __init__(self, video_llm: VideoLLM, config: EngineConfig) -> None:
        self._llm = video_llm
        self._config = config
        self._batch = RunningBatch(video_llm)
        self._waiting: list[Answering] = []

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """There is nothing to start."""

    def check(self, decoding: Decoding) -> None:
        """It draws freely."""
        if decoding.structure is not None:
            raise ApiError(
                400,
                "unsupported",
                f"this service's engine cannot hold an answer to the form {decoding.structure.kind!r}: "
                'the engine that can is set by engine.kind = "vllm"',
                "response_format",
            )

    def begin(self, rows: Sequence[Row]) -> None:
        """They wait until the batch has room."""
        self._waiting += dict.fromkeys(row.answering for row in rows)

    def advance(self) -> bool:
        """Let those join that fit, then draw one token of every answer."""
        for answering in self._waiting:
            if answering.prompt.job.cancelled.is_set():
                answering.prompt.job.emit(Failed(overloaded("nobody waits for the answer", 1)))
        self._waiting = [answering for answering in self._waiting if not answering.prompt.job.ended]
        joining, self._waiting = self._fitting()
        for part in of_one_length(joining):
            with refusals(*(answering.prompt.job for answering in part)):
                self._batch.add(part)
        running = self._batch.answerings
        if running:
            batch, self._batch = self._batch, RunningBatch(self._llm)  # what fails is torn
            with refusals(*(answering.prompt.job for answering in running)):
                batch.step()
                self._batch = batch
        return bool(self._waiting or self._batch.answerings)

    def fault(self) -> str | None:
        """None: a token that does not come is seen by who waits for it."""
        return None

    def metrics(self) -> list[Metric]:
        """It has none of its own."""
        return []

    def stop(self) -> None:
        """There is nothing to stop."""

    def _fitting(self) -> tuple[list[Answering], list[Answering]]:
        """Those that wait, in their order: which fit ``max_batch_tokens`` with the batch, padding included; the rest.

        An empty batch takes one whatever its size.
        """
        running = self._batch.answerings
        widest, rows = max((each.width for each in running), default=0), sum(len(each.rows) for each in running)
        for place, answering in enumerate(self._waiting):
            widest, rows = max(widest, answering.width), rows + len(answering.rows)
            if widest * rows > self._config.max_batch_tokens and (place or running):
                return self._waiting[:place], self._waiting[place:]
        return self._waiting, []
