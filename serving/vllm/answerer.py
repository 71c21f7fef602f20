"""The vLLM engine: answers are drawn as they come and go, by an AsyncLLM in this process and its core in another.

    begin (engine's thread) -> a task an answer (replica's loop) -> AsyncLLM -> Row.take, a token at a time

Encoding goes on meanwhile. vLLM gives tokens; text, stop strings and the rest are the same as with transformers.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from itertools import count
from typing import Any

from prometheus_client import REGISTRY, Metric
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from cacovid.models.adapter import VideoLLM
from serving.config import EngineConfig
from serving.engine.decoding import Row
from serving.engine.records import Decoding, Token
from serving.errors import internal_error
from serving.vllm.arguments import engine_arguments, set_environment
from serving.vllm.names import DRAWS
from serving.vllm.prompt import vllm_prompt

logger = logging.getLogger("cacovid.serving.engine")


class ContinuousBatches:
    """vLLM behind :class:`serving.engine.answerer.Answerer`.

    Args:
        video_llm: what encodes; its language model's files are read by vLLM.
        config: limits and sizes.
        on_death: called once vLLM's core is dead; what is asked of it then is never answered.
    """

    def __init__(self, video_llm: VideoLLM, config: EngineConfig, on_death: Callable[[], None]) -> None:
        set_environment(config, cuda=video_llm.device.type == "cuda")
        self._llm = video_llm
        self._config = config
        self._on_death = on_death
        self._vllm = AsyncLLM.from_engine_args(engine_arguments(video_llm, config))
        self._loop: asyncio.AbstractEventLoop | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = count()
        self._last_token = time.monotonic()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Once, before the first row: requests run in ``loop``."""
        self._loop = loop

    def begin(self, rows: Sequence[Row]) -> None:
        """Hand ``rows`` to vLLM, from the engine's thread."""
        assert self._loop is not None
        for row in rows:
            prompt = vllm_prompt(row.prompt.encoded, row.prompt.kept, row.prompt.positions)
            self._loop.call_soon_threadsafe(self._launch, row, prompt)

    def fault(self) -> str | None:
        """Why vLLM answers nobody any more."""
        if self._vllm.errored:
            return "vLLM's core is dead"
        if self._tasks and time.monotonic() - self._last_token > self._config.stall_s:
            return f"vLLM has given no token for engine.stall_s={self._config.stall_s}"
        return None

    def metrics(self) -> list[Metric]:
        """vLLM's own."""
        return [family for family in REGISTRY.collect() if family.name.startswith("vllm:")]

    def stop(self) -> None:
        """End vLLM's core."""
        self._vllm.shutdown()

    def _launch(self, row: Row, prompt: Any) -> None:  # noqa: ANN401
        assert self._loop is not None
        if not self._tasks:
            self._last_token = time.monotonic()
        task = self._loop.create_task(self._answer(row, prompt))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        row.prompt.job.on_cancel(lambda: self._cancel(task))

    def _cancel(self, task: "asyncio.Task[None]") -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(task.cancel)

    async def _answer(self, row: Row, prompt: Any) -> None:  # noqa: ANN401
        """Take vLLM's tokens until the row is done; leaving the generator aborts the request in vLLM."""
        started = time.perf_counter()
        wanted = _sampling(row.decoding, self._llm.end_tokens)
        try:
            async with aclosing(self._vllm.generate(prompt, wanted, str(next(self._numbers)))) as outputs:
                async for output in outputs:
                    self._last_token = time.monotonic()
                    for token in _tokens(output.outputs[0]):
                        if not row.done:
                            row.take(token, self._llm.end_tokens, time.perf_counter() - started)
                    if row.done:
                        return
        except EngineDeadError:
            logger.error("vLLM's core is dead")
            self._on_death()
            return
        except Exception:
            logger.exception("vLLM failed with a request")
        if not row.done:
            row.fail(internal_error())


def _sampling(decoding: Decoding, ends: Sequence[int]) -> SamplingParams:
    """Greedy towards vLLM: draws are made by :mod:`serving.vllm.draws`."""
    return SamplingParams(
        temperature=0.0,
        max_tokens=decoding.max_tokens,
        stop_token_ids=list(ends),
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
        logprobs=0,
        extra_args={DRAWS: vars(decoding)} if decoding.temperature > 0 else None,
    )


def _tokens(output: Any) -> list[Token]:  # noqa: ANN401  a CompletionOutput
    likely = output.logprobs or [{}] * len(output.token_ids)
    return [
        Token(token, found[token].logprob if token in found else 0.0)
        for token, found in zip(output.token_ids, likely, strict=True)
    ]
