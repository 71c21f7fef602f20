"""The vLLM engine: answers are drawn as they come and go, by an AsyncLLM in this process and its core in another.

    begin (engine's thread) -> a task an answer (replica's loop) -> AsyncLLM -> Row.take, a token at a time

Encoding goes on meanwhile. vLLM gives tokens; text, stop strings and the rest are the same as with transformers.
"""

import asyncio
import logging
import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from itertools import count
from typing import Any

from prometheus_client import REGISTRY, Metric
from vllm.exceptions import VLLMValidationError
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from cacovid.errors import UserError
from cacovid.models.adapter import VideoLLM
from serving.config import EngineConfig
from serving.engine.answer_tasks import AnswerTasks
from serving.engine.decoding import Answering, Row
from serving.engine.records import Decoding
from serving.errors import ApiError, internal_error
from serving.vllm.arguments import engine_arguments
from serving.vllm.memory import check_share, leave_layers
from serving.vllm.names import REPLICA
from serving.vllm.prompt import vllm_prompt
from serving.vllm.sampling import sampling, tokens

logger = logging.getLogger("cacovid.serving.engine")


class ContinuousBatches:
    """vLLM behind :class:`serving.engine.answerer.Answerer`.

    Args:
        video_llm: what encodes; it loses its language model's layers, whose files vLLM reads itself.
        config: limits and sizes.
        on_death: called once vLLM's core is dead; what is asked of it then is never answered.

    Raises:
        UserError: vLLM cannot be started for this model, in this memory.
    """

    def __init__(self, video_llm: VideoLLM, config: EngineConfig, on_death: Callable[[], None]) -> None:
        self._llm = video_llm
        self._config = config
        self._on_death = on_death
        arguments = engine_arguments(video_llm, config)
        leave_layers(video_llm)
        check_share(video_llm, config.vllm)
        multiprocessing.current_process().name = REPLICA
        try:
            self._vllm = AsyncLLM.from_engine_args(arguments)
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(f"vLLM did not start: {reason} (its own lines above say more; see docs/vllm.md)") from error
        self._tasks = AnswerTasks(_prompt_of, self._answer)
        self._numbers = count()
        self._last_token = 0.0  # monotonic seconds

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Once, before the first row: requests run in ``loop``."""
        self._tasks.start(loop)

    def check(self, decoding: Decoding) -> None:
        """Raises ApiError (400) for a form of answers that vLLM cannot hold one to."""
        if decoding.structure is None:
            return
        wanted, known = sampling(decoding, self._llm.end_tokens), self._vllm.vllm_config
        model, drafts, forms = known.model_config, known.speculative_config, known.structured_outputs_config
        try:
            wanted.verify(model, drafts, forms, self._vllm.get_tokenizer())
        except (VLLMValidationError, ValueError) as error:
            logger.info("a form of answers is refused: %s", error)  # with paths, at times: not for the client
            message = f"no answer can be held to this {decoding.structure.kind}: mend it"
            raise ApiError(400, "invalid_value", message, "response_format") from error

    def begin(self, rows: Sequence[Row]) -> None:
        """Hand ``rows`` to vLLM, from the engine's thread."""
        self._tasks.begin(rows)

    def advance(self) -> bool:
        """False: vLLM's core draws."""
        return False

    def fault(self) -> str | None:
        """Why vLLM answers nobody any more."""
        if self._vllm.errored:
            return "vLLM's core is dead"
        since = self._tasks.busy_since
        if since is not None and time.monotonic() - max(since, self._last_token) > self._config.stall_s:
            return f"vLLM has given no token for engine.stall_s={self._config.stall_s}"
        return None

    def metrics(self) -> list[Metric]:
        """vLLM's own."""
        return [family for family in REGISTRY.collect() if family.name.startswith("vllm:")]

    def stop(self) -> None:
        """End vLLM's core."""
        self._vllm.shutdown()

    async def _answer(self, row: Row, prompt: Any) -> None:  # noqa: ANN401
        """Take vLLM's tokens until the row is done; leaving the generator aborts the request in vLLM."""
        started = time.perf_counter()
        wanted = sampling(row.decoding, self._llm.end_tokens)
        try:
            async with aclosing(self._vllm.generate(prompt, wanted, str(next(self._numbers)))) as outputs:
                async for output in outputs:
                    self._last_token = time.monotonic()
                    for token in tokens(output.outputs[0], row.decoding.logprobs or 0):
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
            row.fail(internal_error() if row.decoding.structure is None else _unsayable())


def _prompt_of(answering: Answering) -> Any:  # noqa: ANN401  a TypedDict of vLLM's
    prompt = answering.prompt
    return vllm_prompt(prompt.encoded, prompt.kept, prompt.positions)


def _unsayable() -> ApiError:
    """vLLM ends an answer that no token can continue in its form."""
    message = "this model's vocabulary has no words for an answer of this form: ask for another"
    return ApiError(400, "invalid_value", message, "response_format")
