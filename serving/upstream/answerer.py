"""A vLLM server elsewhere as what answers: compressed prompts go to its ``/v1/completions`` as ``prompt_embeds``.

    begin (engine's thread) -> a task an answer (replica's loop) -> HTTP stream -> Row.take, a token at a time

The server stays as it is, started with ``--enable-prompt-embeds``. It numbers positions itself, without gaps, and knows
no tower levels: models that need them are refused at the start.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import aiohttp
from prometheus_client import Metric

from cacovid.models.adapter import VideoLLM
from serving.api.keys import read_keys
from serving.config import EngineConfig
from serving.engine.answer_tasks import AnswerTasks
from serving.engine.decoding import Row
from serving.engine.records import Decoding
from serving.errors import ApiError, internal_error
from serving.upstream.protocol import choice_of, failed, prompt_of, refusal_of, tokens_of, wish_of
from serving.vllm.memory import leave_layers

logger = logging.getLogger("cacovid.serving.engine")


class UpstreamAnswers:
    """A server behind :class:`serving.engine.answerer.Answerer`.

    Args:
        video_llm: what encodes; it loses its language model's layers.
        config: ``upstream``, limits and sizes.
    """

    def __init__(self, video_llm: VideoLLM, config: EngineConfig) -> None:
        assert config.upstream.url is not None
        self._llm = video_llm
        self._own = config.upstream
        self._url = config.upstream.url.rstrip("/").removesuffix("/v1")
        self._stall_s = config.stall_s
        self._name = config.upstream.model  # '' until the server has told it
        self._client: aiohttp.ClientSession | None = None
        self._tasks = AnswerTasks(partial(prompt_of, video_llm), self._answer)
        leave_layers(video_llm)

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Once, before the first row: requests run in ``loop``."""
        self._tasks.start(loop)
        keys = [] if self._own.key_file is None else read_keys(self._own.key_file)
        self._client = aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {keys[0]}"} if keys else None,
            timeout=aiohttp.ClientTimeout(sock_connect=self._own.connect_timeout_s, sock_read=self._stall_s),
            connector=aiohttp.TCPConnector(limit=0),  # the engine's own bounds hold
        )

    def check(self, decoding: Decoding) -> None:
        """The server says itself what it cannot do."""

    def begin(self, rows: Sequence[Row]) -> None:
        """Send the prompts of ``rows``, from the engine's thread."""
        self._tasks.begin(rows)

    def advance(self) -> bool:
        """False: the server draws."""
        return False

    def fault(self) -> str | None:
        """None: another replica would not have another server."""
        return None

    def metrics(self) -> list[Metric]:
        """The server tells its own."""
        return []

    def stop(self) -> None:
        """Let the connections go; the loop may have ended."""
        if self._client is not None and self._tasks.loop.is_running():
            asyncio.run_coroutine_threadsafe(self._client.close(), self._tasks.loop)

    async def _answer(self, row: Row, prompt: dict[str, Any]) -> None:
        try:
            await self._streamed(row, prompt)
            return
        except ApiError as error:
            refusal = error
        except aiohttp.ClientConnectorError:
            refusal = ApiError(
                503, "upstream_unavailable", "the vLLM server behind this service does not answer; try again", None, 5
            )
        except (aiohttp.ClientError, TimeoutError):
            refusal = ApiError(
                503, "upstream_lost", "the connection to the vLLM server was lost; try again", retry_after_s=2
            )
        except Exception:
            logger.exception("a request to the vLLM server failed inside")
            refusal = internal_error()
        if not row.done:
            row.fail(refusal)

    async def _streamed(self, row: Row, prompt: dict[str, Any]) -> None:
        """Take the server's tokens until the row is done; leaving the response ends the request there."""
        assert self._client is not None
        started, ends = time.perf_counter(), self._llm.end_tokens
        body = prompt | wish_of(row.decoding, ends) | {"model": await self._model()}
        async with self._client.post(f"{self._url}/v1/completions", json=body) as response:
            if response.status != 200:
                raise refusal_of(response.status, await response.content.read(1 << 16))
            async for line in response.content:
                choice = choice_of(line)
                if choice is None:
                    continue
                for token in tokens_of(choice, row.decoding.logprobs or 0):
                    if not row.done:
                        row.take(token, ends, time.perf_counter() - started)
                if choice.get("finish_reason") and not row.done:
                    row.end("stop" if choice["finish_reason"] == "stop" else "length", time.perf_counter() - started)
                if row.done:
                    return
        raise failed("its stream ended before the answer")

    async def _model(self) -> str:
        """The server's name of the model, asked for once."""
        if not self._name:
            assert self._client is not None
            async with self._client.get(f"{self._url}/v1/models") as response:
                if response.status != 200:
                    raise refusal_of(response.status, await response.content.read(1 << 16))
                try:
                    self._name = str((await response.json())["data"][0]["id"])
                except (ValueError, LookupError, TypeError) as error:
                    raise failed("it names no model") from error
        return self._name
