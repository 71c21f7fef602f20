"""The deployment that holds Video-LLM and policies."""

import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from serving.config import ServiceConfig
from serving.engine.records import Answer, Compressed, EngineRequest, Event, Failed, ModelCard
from serving.logs import set_up_logs
from serving.media.records import Clip

if TYPE_CHECKING:
    from serving.engine.batcher import Batcher

logger = logging.getLogger("cacovid.serving.engine")


class EngineReplica:
    """One Video-LLM with its policies. ``reconfigure`` changes the policies while requests run."""

    def __init__(self, config: ServiceConfig) -> None:
        # Here, so that whoever only binds this class to a deployment needs no torch.
        import torch

        from cacovid.models.loading import load_video_llm
        from serving.engine.batcher import Batcher
        from serving.engine.engine import Engine

        set_up_logs(config.log_level)
        if config.engine.gpus == 0:
            torch.set_num_threads(config.engine.threads)
        self._engine = Engine(load_video_llm(config.model), config.engine, config.base_id)
        self._batcher = Batcher(self._engine, config.engine)
        self._started = False

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Serve the policies of ``user_config['policies']`` from the next batch on."""
        self._engine.load_policies(user_config["policies"])
        logger.info("policies: %s", ", ".join(card.id for card in self._engine.models()))

    async def answer(self, request: EngineRequest, *clips: Clip | Failed) -> Answer | Failed:
        """The whole answer."""
        refusal = _refusal(clips)
        return refusal or await self._running().answer(request, _usable(clips))

    async def stream(self, request: EngineRequest, *clips: Clip | Failed) -> AsyncIterator[Event]:
        """Events up to Finished or Failed."""
        refusal = _refusal(clips)
        if refusal:
            yield refusal
            return
        async with aclosing(self._running().events(request, _usable(clips))) as events:
            async for event in events:
                yield event

    async def compress(self, request: EngineRequest, *clips: Clip | Failed) -> Compressed | Failed:
        """The retained tokens alone."""
        refusal = _refusal(clips)
        return refusal or await self._running().compress(request, _usable(clips))

    async def models(self) -> list[ModelCard]:
        """Every model id."""
        return self._engine.models()

    async def check_health(self) -> None:
        """Raises RuntimeError when the batching loop has ended or a batch hangs; Serve then replaces the replica."""
        fault = self._running().fault()
        if fault:
            raise RuntimeError(fault)

    def _running(self) -> "Batcher":
        """The batcher, started in the loop that requests run in."""
        if not self._started:
            self._batcher.start()
            self._started = True
        return self._batcher


def _refusal(clips: tuple[Clip | Failed, ...]) -> Failed | None:
    """The first video's refusal, if any."""
    return next((clip for clip in clips if isinstance(clip, Failed)), None)


def _usable(clips: tuple[Clip | Failed, ...]) -> list[Clip]:
    return [clip for clip in clips if isinstance(clip, Clip)]
