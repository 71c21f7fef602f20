"""One video through a service's sandbox and engine, without HTTP and Ray, for :mod:`benchmarks.long_video`."""

import asyncio
import os
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

import serving
from benchmarks.compressed_video import OPTIONS, QUESTION, RETENTION, Compressed
from benchmarks.memory import PeakMemory
from cacovid.config import TrainConfig
from cacovid.models.loading import load_video_llm
from cacovid.policy.build import policy_for
from serving.answerers import answerer_for
from serving.config import ServiceConfig
from serving.config_file import load_service_config
from serving.engine.batcher import Batcher
from serving.engine.engine import Engine
from serving.engine.records import Answer, CompressionWish, Decoding, EngineRequest, Outcome
from serving.engine.records import Compressed as Outcomes
from serving.media.records import Sampling, VideoInput
from serving.media.sandbox import Sandbox

MODEL = "demo"


def serve(video: Path, frames: int, chunk: int | None) -> Compressed:
    """Compress and answer, in this process and in decoding processes."""
    torch.set_num_threads(1)
    shipped = load_service_config(Path(serving.__file__).parent / "long_videos.yaml")
    media = shipped.media.model_copy(update={"chunk_frames": chunk, "file_root": str(video.parent)})
    return asyncio.run(_serve(shipped.model_copy(update={"media": media}), video, frames))


async def _serve(config: ServiceConfig, video: Path, frames: int) -> Compressed:
    llm = load_video_llm(config.model)
    engine = Engine(llm, config.engine, config.base_id, answerer_for(llm, config.engine, os.abort))
    with tempfile.TemporaryDirectory() as folder:
        policy_for(llm, TrainConfig()).save_pretrained(folder)
        engine.load_policies({MODEL: folder})
    sandbox, batcher = Sandbox(config.media, config.model.num_frames), Batcher(engine, config.engine)
    batcher.start()

    async def ask(count: int, decoding: Decoding | None) -> Outcome:
        clip = await sandbox.read(VideoInput("file", f"file://{video}", Sampling(num_frames=count)))
        return await batcher.answer(replace(_request(), decoding=decoding), [clip])

    try:
        await ask(8, Decoding(max_tokens=8))  # what is loaded on first use
        started = time.perf_counter()
        with PeakMemory(children=True) as memory:
            answer = await ask(frames, Decoding(max_tokens=8))
            seconds = time.perf_counter() - started
            compressed = await ask(frames, None)  # of a known video
    finally:
        await batcher.stop()
        sandbox.close()
    assert isinstance(answer, Answer)
    assert isinstance(compressed, Outcomes)
    return Compressed(compressed.report.video_tokens, compressed.kept, seconds, memory.nbytes / 1e6)


def _request() -> EngineRequest:
    text = "\n".join([QUESTION, *(f"{letter}. {option}" for letter, option in zip("ABCD", OPTIONS, strict=True))])
    content = [{"type": "video"}, {"type": "text", "text": text}]
    return EngineRequest(MODEL, ({"role": "user", "content": content},), CompressionWish(retention=RETENTION))
