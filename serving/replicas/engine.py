"""The deployment that holds Video-LLM and policies."""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from prometheus_client import Metric
from ray import serve

from serving.answerers import answerer_for
from serving.config import ServiceConfig
from serving.engine.records import EngineRequest, Event, Failed, ModelCard, Outcome
from serving.logs import set_up_logs
from serving.media.records import Clip, VideoInput
from serving.replicas.media import MediaReplica

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
        video_llm = load_video_llm(config.model)
        self._engine = Engine(video_llm, config.engine, config.base_id, answerer_for(video_llm, config.engine, _end))
        self._batcher = Batcher(self._engine, config.engine)
        self._media = MediaReplica(config) if config.media.place == "engine" else None

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Serve the policies of ``user_config['policies']`` from the next batch on."""
        self._engine.load_policies(user_config["policies"])
        logger.info("policies: %s", ", ".join(card.id for card in self._engine.models()))

    async def answer(self, request: EngineRequest, *videos: Clip | Failed | VideoInput) -> Outcome:
        """The outcome as a whole; videos that no media replica has read are read here."""
        read = await self._read(videos)
        return read if isinstance(read, Failed) else await self._running().answer(request, read)

    async def stream(self, request: EngineRequest, *videos: Clip | Failed | VideoInput) -> AsyncIterator[Event]:
        """Events up to Finished or Failed."""
        read = await self._read(videos)
        if isinstance(read, Failed):
            yield read
            return
        async with aclosing(self._running().events(request, read)) as events:
            async for event in events:
                yield event

    async def models(self) -> list[ModelCard]:
        """Every model id."""
        return self._engine.models()

    async def families(self) -> list[Metric]:
        """Metrics of what answers, with this replica's name."""
        own = {"replica": serve.get_replica_context().replica_id.unique_id}
        families = self._engine.answerer.metrics()
        for family in families:
            family.samples = [sample._replace(labels=own | sample.labels) for sample in family.samples]
        return families

    async def check_health(self) -> None:
        """Raises RuntimeError when the batching loop has ended or a batch hangs; Serve then replaces the replica."""
        fault = self._running().fault()
        if fault:
            raise RuntimeError(fault)
        if self._media is not None:
            await self._media.check_health()

    async def _read(self, videos: Sequence[Clip | Failed | VideoInput]) -> list[Clip] | Failed:
        """The clips, or the refusal of the first video that has none."""
        found = await asyncio.gather(*(self._clip(video) for video in videos))
        refusal = next((clip for clip in found if isinstance(clip, Failed)), None)
        return refusal or [clip for clip in found if isinstance(clip, Clip)]

    async def _clip(self, video: Clip | Failed | VideoInput) -> Clip | Failed:
        if not isinstance(video, VideoInput):
            return video
        assert self._media is not None
        return await self._media.read(video)

    def _running(self) -> "Batcher":
        """The batcher, started in the loop that requests run in."""
        self._batcher.start()
        return self._batcher


def _end() -> None:
    """End this process, whose vLLM is dead: Serve starts another, and what was asked is sent there."""
    logger.error("this replica ends, because vLLM's core is dead")
    os._exit(1)
