"""The two engines over one model, and what they say to the same requests."""

import asyncio
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client import Metric
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.v1.engine.llm_engine import LLMEngine

from cacovid.config import ModelConfig, TrainConfig
from cacovid.models.adapter import VideoLLM
from cacovid.models.loading import load_video_llm
from cacovid.policy.build import policy_for
from serving.answerers import answerer_for
from serving.config import MIB, EngineConfig
from serving.engine.batcher import Batcher
from serving.engine.decoding import Row
from serving.engine.engine import Engine
from serving.engine.records import Answer, Decoding, EngineRequest
from serving.media.records import Clip
from serving.vllm.arguments import engine_arguments
from serving.vllm.environment import set_environment
from serving.vllm.memory import leave_layers
from serving.vllm.prompt import vllm_prompt
from serving.vllm.sampling import sampling, tokens
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


class InProcess:
    """The vLLM engine with its core in this process: up in seconds. Everything but AsyncLLM is the service's own."""

    def __init__(self, video_llm: VideoLLM, config: EngineConfig) -> None:
        set_environment(config, cuda=False)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        arguments = engine_arguments(video_llm, config)
        arguments.distributed_executor_backend = "uni"
        try:
            self._vllm = LLMEngine.from_engine_args(arguments)
        finally:
            del os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"]
        leave_layers(video_llm)
        self._ends = video_llm.end_tokens
        self._rows: dict[str, Row] = {}

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        pass

    def check(self, decoding: Decoding) -> None:
        pass

    def begin(self, rows: Sequence[Row]) -> None:
        for row in rows:
            prompt = vllm_prompt(row.prompt.encoded, row.prompt.kept, row.prompt.positions)
            name = self._vllm.add_request(str(id(row)), prompt, sampling(row.decoding, self._ends))
            self._rows[str(id(row))] = self._rows[name] = row

    def advance(self) -> bool:
        if self._vllm.has_unfinished_requests():
            for output in self._vllm.step():
                row = self._rows[output.request_id]
                for token in tokens(output.outputs[0], row.decoding.logprobs or 0):
                    row.take(token, self._ends, 0.0)
        return self._vllm.has_unfinished_requests()

    def fault(self) -> str | None:
        return None

    def metrics(self) -> list[Metric]:
        return []

    def stop(self) -> None:
        self._vllm.engine_core.shutdown()
        cleanup_dist_env_and_memory()


def died() -> None:
    raise AssertionError("vLLM's core died")


@contextmanager
def engine_of(model: ModelConfig, policy: str, kind: str, core: bool = True, **vllm: Any) -> Iterator[Engine]:
    """An engine with one policy, 'trained', and the model alone, 'plain'; vLLM's with a core process or without."""
    video_llm = load_video_llm(model)
    config = EngineConfig.model_validate(
        {"kind": kind, "max_prompt_tokens": 2048, "vllm": {"kv_cache_bytes": 32 * MIB} | vllm}
    )
    answerer = answerer_for(video_llm, config, died) if core else InProcess(video_llm, config)
    engine = Engine(video_llm, config, "plain", answerer)
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
