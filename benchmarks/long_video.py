"""An hour of video at one frame a second: memory and time of compressing it in chunks and at once.

    python -m benchmarks.long_video [--frames 3600] [--chunk 64] [--served]

The embedded model with an untrained policy, each way in a process of its own. Memory is what the process holds beyond
what it held with model and policy loaded; files of the clip's rows and, served, of its frames are not in it, for the
system may drop their pages. Served: an engine with its decoding processes, which count too, without Ray.
"""

import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.compressed_video import Compressed, compress
from benchmarks.table import show


def measure(
    frames: int, chunks: list[int | None], way: Callable[[Path, int, int | None], Compressed] = compress
) -> list[Compressed]:
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
                found.append(process.submit(way, video, frames, chunk).result())
    return found


def main(
    frames: Annotated[int, typer.Option(min=8, help="of the video, all of which are sampled")] = 3600,
    chunk: Annotated[int, typer.Option(min=1, help="frames at a time")] = 64,
    whole: Annotated[bool, typer.Option("--whole", help="also at once")] = False,
    served: Annotated[bool, typer.Option("--served", help="by a service's engine, set as long_videos.yaml")] = False,
) -> None:
    """Print the table."""
    from benchmarks.served_video import serve

    chunks = [chunk, *([None] if whole else [])]
    rows = [
        [
            "at once" if size is None else f"{size} frames at a time",
            f"{found.tokens:,}",
            f"{len(found.kept)}",
            f"{found.peak_mb:.0f}",
            f"{found.seconds:.0f}",
        ]
        for size, found in zip(chunks, measure(frames, chunks, serve if served else compress), strict=True)
    ]
    title = f"A video of {frames} frames" + (", served" if served else "")
    show(title, ("", "tokens", "kept", "peak MB", "s"), rows)


if __name__ == "__main__":
    typer.run(main)
