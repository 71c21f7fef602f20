"""Engines with tiny random models, and requests for them."""

import atexit
from dataclasses import replace
from functools import cache
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import numpy as np

from cacovid.config import ModelConfig, TrainConfig
from cacovid.models.adapter import VideoLLM
from cacovid.models.loading import load_video_llm
from cacovid.policy.build import policy_for
from serving.config import EngineConfig
from serving.engine.engine import Engine
from serving.engine.generation import JoiningBatches
from serving.engine.prompts import Job
from serving.engine.records import Decoding, Delta, EngineRequest, Event, Failed
from serving.media.records import Clip
from tests.support.tiny_models import save_tiny_model

QUESTION = "what is the colour of the circle?\nA. red\nB. blue"
WORDY = "what is the colour of the circle where the square is left of the triangle before frame three?"
KIND = "llava_onevision"


def clip_of(seed: int, frames: int = 8) -> Clip:
    pixels = np.random.default_rng(seed).integers(0, 256, (frames, 48, 48, 3), dtype=np.uint8)
    return Clip(pixels, tuple(map(float, range(frames))), float(frames), 1.0, f"clip {seed} {frames}", 0.0, 0.0)


def asks(question: str = QUESTION, videos: int = 1, **changes) -> EngineRequest:
    content = [*({"type": "video"} for _ in range(videos)), {"type": "text", "text": question}]
    request = EngineRequest("trained", ({"role": "user", "content": content},), decoding=Decoding(max_tokens=6))
    return replace(request, **changes)


def compresses(question: str = QUESTION, **changes) -> EngineRequest:
    return asks(question, decoding=None, **changes)


def _folder() -> Path:
    folder = Path(mkdtemp(prefix="cacovid-engine-"))
    atexit.register(rmtree, folder)
    return folder


@cache
def tiny_folder(kind: str) -> str:
    return str(save_tiny_model(kind, _folder() / kind))


@cache
def tiny_llm(kind: str) -> VideoLLM:
    return load_video_llm(ModelConfig(path=tiny_folder(kind), num_frames=8))


@cache
def tiny_policy(kind: str = KIND, seed: int = 0) -> str:
    """Folder of a fresh policy for that model."""
    folder = _folder()
    policy_for(tiny_llm(kind), TrainConfig(run={"seed": seed})).save_pretrained(folder)
    return str(folder)


def engine_of(kind: str = KIND, **config) -> Engine:
    """One policy, 'trained', and the model alone, 'plain'."""
    settings = EngineConfig(**config)
    engine = Engine(tiny_llm(kind), settings, "plain", JoiningBatches(tiny_llm(kind), settings))
    engine.load_policies({"trained": tiny_policy(kind)})
    return engine


def run(engine: Engine, *asked: tuple[EngineRequest, list[Clip]]) -> list[list[Event]]:
    """One batch; the events of each request."""
    events: list[list[Event]] = [[] for _ in asked]
    engine.run([Job(request, clips, own.append) for (request, clips), own in zip(asked, events, strict=True)])
    return events


def one(engine: Engine, request: EngineRequest, clip: Clip | None = None) -> list[Event]:
    return run(engine, (request, [clip or clip_of(0)]))[0]


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def failure(events: list[Event]) -> Failed:
    assert isinstance(events[-1], Failed), events
    return events[-1]
