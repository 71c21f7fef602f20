"""An hour of video at one frame a second: memory and time of compressing it in chunks and at once.

    python -m benchmarks.long_video [--frames 3600] [--chunk 64]

The embedded model with an untrained policy, each way in a process of its own. Memory is what the process holds beyond
what it held with model and policy loaded; the file of the clip's rows is not in it, for the system may drop its pages.
"""

import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from benchmarks.table import show

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


def measure(frames: int, chunks: list[int | None]) -> list[Compressed]:
    """Each of ``chunks`` frames at a time, None at once, on one drawn video of ``frames`` frames."""
    from cacovid.embedded.clips import draw_clip
    from cacovid.embedded.splits import DEVELOPMENT
    from cacovid.embedded.video_writer import write_mp4

    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "video.mp4"
        write_mp4(video, draw_clip(DEVELOPMENT[0], frames).frames)
        found = []
        for chunk in chunks:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                found.append(process.submit(compress, video, frames, chunk).result())
    return found


def main(
    frames: Annotated[int, typer.Option(min=8, help="of the video, all of which are sampled")] = 3600,
    chunk: Annotated[int, typer.Option(min=1, help="frames at a time")] = 64,
    whole: Annotated[bool, typer.Option("--whole", help="also at once")] = False,
) -> None:
    """Print the table."""
    chunks = [chunk, *([None] if whole else [])]
    rows = [
        [
            "at once" if size is None else f"{size} frames at a time",
            f"{found.tokens:,}",
            f"{len(found.kept)}",
            f"{found.peak_mb:.0f}",
            f"{found.seconds:.0f}",
        ]
        for size, found in zip(chunks, measure(frames, chunks), strict=True)
    ]
    show(f"A video of {frames} frames", ("", "tokens", "kept", "peak MB", "s"), rows)


if __name__ == "__main__":
    typer.run(main)
