"""What keeping freed memory is worth to processes on CPUs: two of one thread score the same, taking turns.

    python -m benchmarks.kept_memory

Page faults are told beside the speed: they depend on nothing else that runs.
"""

import multiprocessing as mp
import resource
from multiprocessing.connection import Connection
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer

from benchmarks.table import show_ratios
from benchmarks.timing import alternating_rounds
from cacovid.config import ModelConfig
from cacovid.cpu_memory import keep_freed_memory
from cacovid.models.loading import load_video_llm


class Scoring(NamedTuple):
    """What is scored in one turn."""

    model: str
    frames: int
    rows: int  # combinations of one question
    kept: int  # retained tokens of each
    questions: int


SCORINGS = (Scoring("embedded", 8, 32, 16, 20), Scoring("embedded-2", 64, 16, 512, 3))


def combinations(scoring: Scoring, tokens: int) -> torch.Tensor:
    """(rows, kept) ascending token indices, the same every time."""
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randperm(tokens, generator=draw)[: scoring.kept].sort().values for _ in range(scoring.rows)]
    return torch.stack(rows)


def serve(scoring: Scoring, keep: bool, turns: Connection) -> None:
    """A process of its own: score once for every True that comes, and tell the page faults of it; False ends it."""
    torch.set_num_threads(1)
    if keep:
        keep_freed_memory()
    video_llm = load_video_llm(ModelConfig(path=scoring.model, num_frames=scoring.frames, device="cpu"))
    frames = np.random.default_rng(0).integers(0, 256, (scoring.frames, 96, 96, 3), dtype=np.uint8)
    encoded = video_llm.encode(video_llm.watch(frames), "what is it?")
    kept = combinations(scoring, encoded.grid.tokens)
    while turns.recv():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(scoring.questions):
            video_llm.first_logits(encoded, kept)
        turns.send(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


class Side:
    """A process that scores when it is told to."""

    def __init__(self, scoring: Scoring, keep: bool) -> None:
        self._turns, theirs = mp.Pipe()
        self._process = mp.get_context("spawn").Process(target=serve, args=(scoring, keep, theirs), daemon=True)
        self._process.start()
        for _ in range(3):
            self.turn()  # loads, and finds out how much memory it takes

    def turn(self) -> None:
        """Score once."""
        self._turns.send(True)
        self.page_faults = int(self._turns.recv())

    def end(self) -> None:
        """Let the process go."""
        self._turns.send(False)
        self._process.join()


def compare(scoring: Scoring, rounds: int) -> dict[str, Side]:
    """Print the table of one scoring; the sides have ended, and know the page faults of their last turn."""
    sides = {"given back": Side(scoring, False), "kept": Side(scoring, True)}
    times = alternating_rounds({name: side.turn for name, side in sides.items()}, rounds)
    for side in sides.values():
        side.end()
    scored = scoring.rows * scoring.questions
    title = f"{scoring.model}: {scoring.rows} combinations a question, {scoring.kept} tokens each"
    show_ratios(title, "combinations/s", times, lambda taken: scored / taken)
    for name, side in sides.items():
        typer.echo(f"{name}: {side.page_faults:,} page faults in the last turn")
    return sides


def main(rounds: Annotated[int, typer.Option(min=1, help="turns of each side")] = 9) -> None:
    """Print a table for each embedded world."""
    for scoring in SCORINGS:
        compare(scoring, rounds)


if __name__ == "__main__":
    typer.run(main)
