"""The two engines over one model, and what they say to the same requests."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cacovid.config import ModelConfig, TrainConfig
from cacovid.models.adapter import VideoLLM
from cacovid.models.loading import load_video_llm
from cacovid.policy.build import policy_for
from serving.answerers import answerer_for
from serving.config import MIB, EngineConfig
from serving.engine.batcher import Batcher
from serving.engine.engine import Engine
from serving.engine.records import Answer, EngineRequest
from serving.media.records import Clip
from tests.support.tiny_models import BUILDERS, save_tiny_model

FAMILIES = ("embedded", *BUILDERS)
HEAD = 32  # vLLM's kernels for CPUs know no smaller one
Asked = tuple[EngineRequest, Sequence[Clip]]


def model_of(kind: str, folder: Path) -> ModelConfig:
    path = kind if kind == "embedded" else str(save_tiny_model(kind, folder / kind, head=HEAD))
    return ModelConfig(path=path, num_frames=8)


def policy_of(video_llm: VideoLLM, folder: Path) -> str:
    policy_for(video_llm, TrainConfig()).save_pretrained(str(folder / "policy"))
    return str(folder / "policy")


def died() -> None:
    raise AssertionError("vLLM's core died")


@contextmanager
def engine_of(model: ModelConfig, policy: str, kind: str, **vllm: Any) -> Iterator[Engine]:
    """An engine with one policy, 'trained', and the model alone, 'plain'."""
    video_llm = load_video_llm(model)
    config = EngineConfig.model_validate(
        {"kind": kind, "max_prompt_tokens": 2048, "vllm": {"kv_cache_bytes": 32 * MIB} | vllm}
    )
    engine = Engine(video_llm, config, "plain", answerer_for(video_llm, config, died))
    try:
        engine.load_policies({"trained": policy})
        yield engine
    finally:
        engine.answerer.stop()


def answers(engine: Engine, *rounds: Sequence[Asked]) -> list[list[Answer]]:
    """What the engine says to the requests of each round, all of a round at once."""

    async def ask() -> list[list[Answer]]:
        batcher = Batcher(engine, EngineConfig(max_batch=64))
        batcher.start()
        return [await asyncio.gather(*(batcher.answer(*each) for each in asked)) for asked in rounds]

    return asyncio.run(ask())
