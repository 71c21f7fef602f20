"""One video compressed in this process, for :mod:`benchmarks.long_video`, and what it is asked there."""

import time
from pathlib import Path
from typing import NamedTuple

RETENTION = 0.001
QUESTION, OPTIONS = "what color is the ring object?", ("red", "blue", "green", "white")


class Compressed(NamedTuple):
    """What one way took, and what it kept."""

    tokens: int
    kept: list[int]
    seconds: float
    peak_mb: float


def compress(video: Path, frames: int, chunk: int | None) -> Compressed:
    """Compress and answer, in this process."""
    import torch

    from benchmarks.memory import PeakMemory
    from cacovid.compressor import Compressor
    from cacovid.config import ModelConfig, TrainConfig
    from cacovid.models.loading import load_video_llm
    from cacovid.policy.build import policy_for

    torch.set_num_threads(1)
    llm = load_video_llm(ModelConfig(device="cpu"))
    compressor = Compressor(policy_for(llm, TrainConfig()), llm)
    compressor(video, QUESTION, options=OPTIONS, num_frames=8).answer()  # what is loaded on first use
    started = time.perf_counter()
    with PeakMemory() as memory:
        clip = compressor(video, QUESTION, RETENTION, options=OPTIONS, num_frames=frames, chunk_frames=chunk)
        clip.answer()
    seconds = time.perf_counter() - started
    return Compressed(clip.encoded.grid.tokens, clip.kept.tolist(), seconds, memory.nbytes / 1e6)
