"""Memory and time of a large question table: imported, checked, drawn and trained on.

    python -m benchmarks.table_memory [--rows 1000000]

Each stage runs in a process of its own; its peak is the kernel's count of resident pages, those of mapped files
included.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, NamedTuple

import psutil
import typer

from benchmarks.table import show

VIDEOS = 200  # different files
STEPS, ITEMS = 1_000, 64  # drawn for training, and questions of each
TRAINED_STEPS = 3
ROWS, TABLE = "rows.parquet", "questions.parquet"


class Used(NamedTuple):
    """What a stage took."""

    stage: str
    done: str
    seconds: float
    peak_mb: float


def write_collection(rows: int, folder: Path) -> str:
    """A file with the fields of Video-R1 and questions as long as real ones, and the videos."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from cacovid.embedded.video_writer import write_mp4

    for number in range(VIDEOS):
        frames = np.random.default_rng(number).integers(0, 255, (4, 32, 32, 3), np.uint8)
        write_mp4(folder / f"clip-{number}.mp4", frames)
    schema = pa.Table.from_pylist([_row(0)]).schema
    with pq.ParquetWriter(folder / ROWS, schema) as writer:
        for first in range(0, rows, 50_000):
            part = [_row(number) for number in range(first, min(first + 50_000, rows))]
            writer.write_table(pa.Table.from_pylist(part, schema=schema))
    return f"{rows} rows"


def _row(number: int) -> dict[str, object]:
    return {
        "problem_id": number,
        "problem": f"What happens after person {number} " + "walks past the house on the left " * (number % 4 + 1),
        "data_type": "video",
        "problem_type": "multiple choice",
        "options": [f"{letter}. the one that was seen first, number {number % 89}" for letter in "ABCD"],
        "solution": f"<answer>{'ABCD'[number % 4]}</answer>",
        "path": f"clip-{number % VIDEOS}.mp4",
    }


def import_rows(rows: int, folder: Path) -> str:
    """``cacovid data import``."""
    from cacovid.data.importers.run import import_questions

    imported = import_questions("video-r1", folder / ROWS, folder / TABLE, None)
    return f"{imported.questions} questions, {(folder / TABLE).stat().st_size / 1e6:.0f} MB"


def check(rows: int, folder: Path) -> str:
    """``cacovid data check``."""
    from cacovid.data.checking import check_table
    from cacovid.data.skipped import SkippedItems
    from cacovid.limits import MAX_PIXELS

    report = check_table(folder / TABLE, 4, MAX_PIXELS, SkippedItems(None), lambda *_: None)
    assert report.usable == rows
    return f"{report.usable} questions, {len(report.videos)} videos"


def draw(rows: int, folder: Path) -> str:
    """What the driver of a training run does with its questions, beside everything that it imports."""
    import cluster.training.cpo  # noqa: F401 - its memory counts
    from cacovid.config import TrainConfig
    from cacovid.config_files import with_overrides
    from cacovid.data.order import ItemOrder
    from cacovid.data.skipped import SkippedItems
    from cacovid.embedded.items import training_items

    before = _peak_mb()
    config = with_overrides(TrainConfig(), {"data.train": str(folder / TABLE)})
    order = ItemOrder(training_items(config, folder / "run", SkippedItems(None)), ITEMS, seed=0)
    drawn = {item.id for step in range(STEPS) for item in order.of_step(step)}
    assert len(drawn) == min(STEPS * ITEMS, rows)
    assert order.by_id[next(iter(drawn))].id in drawn
    return f"{len(drawn)} questions in {STEPS} steps; imports alone {before:.0f} MB"


def train(rows: int, folder: Path) -> Iterator[Used]:
    """``cacovid train`` with a rollout actor and a learner, until it ends: a row for each of its processes."""
    options = ("data.train", folder / TABLE), ("run.steps", TRAINED_STEPS), ("actors.count", 1), ("learners.count", 1)
    command = [sys.executable, "-m", "cluster.commands.main", "train", "--out", str(folder / "run")]
    started, peaks = time.perf_counter(), dict[str, float]()
    with subprocess.Popen([*command, *chain(*(("--set", f"{name}={value}") for name, value in options))]) as driver:
        while driver.poll() is None:
            for process in (psutil.Process(driver.pid), *psutil.Process(driver.pid).children(recursive=True)):
                with suppress(psutil.NoSuchProcess, FileNotFoundError, StopIteration):  # it has ended since
                    part = _part(process, driver.pid)
                    peaks[part] = max(_peak_mb(process.pid), peaks.get(part, 0.0))
            time.sleep(0.5)
    assert driver.returncode == 0
    seconds = time.perf_counter() - started
    for part in ("driver", "actor", "learner"):
        yield Used(f"train: {part}", f"{TRAINED_STEPS} steps", seconds, peaks[part])


def _part(process: psutil.Process, driver: int) -> str:
    """What a process of a training run is, by the names that Ray gives its workers."""
    if process.pid == driver:
        return "driver"
    title = process.name() + " ".join(process.cmdline())
    return "actor" if "RolloutEnvRunner" in title else "learner" if "Learner" in title else "ray's own"


def _peak_mb(process: int | str = "self") -> float:
    # Not getrusage's: that begins with what the process was forked from.
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def _used(stage: Callable[[int, Path], str], rows: int, folder: Path) -> Used:
    started = time.perf_counter()
    done = stage(rows, folder)
    return Used(stage.__name__, done, time.perf_counter() - started, _peak_mb())


def measure(rows: int) -> list[Used]:
    """All stages on a made table of ``rows`` rows."""
    used = []
    with tempfile.TemporaryDirectory() as folder:
        for stage in (write_collection, import_rows, check, draw):
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
                used.append(process.submit(_used, stage, rows, Path(folder)).result())
        used += train(rows, Path(folder))
    return used


def main(rows: Annotated[int, typer.Option(min=1, help="of the table")] = 1_000_000) -> None:
    """Print the table."""
    lines = [[each.stage, each.done, f"{each.seconds:.0f}", f"{each.peak_mb:.0f}"] for each in measure(rows)]
    show(f"A table of {rows} questions", ("stage", "what", "s", "peak MB"), lines)


if __name__ == "__main__":
    typer.run(main)
