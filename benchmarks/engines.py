"""The second part of ``make bench-serve``: engines under load, over retentions, clients, videos and lengths of answers.

    python -m benchmarks.engines --kinds transformers,vllm        # vLLM where it is installed
    python -m benchmarks.engines --clients 8 --tokens 32 --requests 8 --videos known     # minutes

Every engine has a service of its own, one after the other; within it the retentions take turns. Answers have all of
their tokens: the model is the embedded one with an end token that it never draws. No two requests ask the same: a known
video is asked about another object each time, and a method that reads the question keeps other tokens for it, so that
vLLM's prefix cache helps with all tokens alone. Everything runs on this machine.
"""

import itertools
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import psutil
import torch
import typer

from benchmarks.endless import NAME, endless_model
from benchmarks.load import Body, LoadClip, Outcomes, bounded_load, percentile, send_streamed
from benchmarks.service import ENGINE_PROCESS, HOST, free_port
from benchmarks.table import show
from cacovid.embedded.glyphs import COLOUR_NAMES, SHAPES
from cacovid.embedded.splits import split_seeds
from cluster.ray_cluster import connected
from serving.config import ServiceConfig
from serving.running import running_service

COLUMNS = (
    *("retention", "requests/s", "tokens/s", "first p50 ms", "p95", "p99", "whole p95", "of the ideal", "not 200"),
)


def main(
    kinds: Annotated[str, typer.Option(help="engine.kind, several by commas")] = "transformers",
    retentions: Annotated[str, typer.Option(help="shares of 1, by commas")] = "1,0.25,0.1,0.05",
    clients: Annotated[str, typer.Option(help="connections, by commas")] = "1,8,32",
    tokens: Annotated[str, typer.Option(help="answer tokens, by commas")] = "1,32",
    videos: Annotated[str, typer.Option(help="'new', 'known' or both by commas")] = "new,known",
    frames: Annotated[int, typer.Option(min=1, help="frames of each video")] = 64,
    requests: Annotated[int, typer.Option(min=1, help="requests of one cell and client")] = 4,
    prefix_caching: Annotated[bool, typer.Option(help="engine.vllm.prefix_caching")] = True,
) -> None:
    """Print one table for each engine, number of clients, kind of videos and length of answers."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = endless_model(Path(folder) / NAME)
        seeds = iter(split_seeds("development", 100_000))
        for kind in kinds.split(","):
            with _service(kind, model, prefix_caching) as url:
                cells = itertools.product(_numbers(clients), videos.split(","), _numbers(tokens))
                for count, which, length in cells:
                    title = f"{kind}, {count} clients, {which} videos of {frames} frames, answers of {length} tokens"
                    load = Load(url, count, length, frames, seeds, known=which == "known")
                    _show(title, load.outcomes([float(each) for each in retentions.split(",")], requests))
                typer.echo(f"peak memory of the engine's processes: {_memory() / 2**30:.2f} GiB")


class Load:
    """One cell of the grid."""

    def __init__(self, url: str, clients: int, tokens: int, frames: int, seeds: Iterator[int], *, known: bool) -> None:
        self._url, self._clients, self._tokens, self._frames = url, clients, tokens, frames
        self._seeds = seeds
        self._known = LoadClip.draw(next(seeds)) if known else None
        # Of words that the model knows: others would all be the same to it.
        self._questions = itertools.product(*(SHAPES, COLOUR_NAMES) * 2)

    def outcomes(self, retentions: Sequence[float], requests: int) -> dict[float, Outcomes]:
        """By retention; a first round of one request a client warms up."""
        for retention in retentions:
            self._round(retention, 1)
        return {retention: self._round(retention, requests) for retention in retentions}

    def _round(self, retention: float, requests: int) -> Outcomes:
        bodies = [self._body(retention) for _ in range(requests * self._clients)]
        return bounded_load(self._url, bodies, self._clients, send_streamed)

    def _body(self, retention: float) -> Body:
        clip = self._known or LoadClip.draw(next(self._seeds))
        asked = replace(clip, question=f"what color is the object {' '.join(next(self._questions))}")
        body = asked.body(NAME, retention, self._frames) | {"max_tokens": self._tokens}
        return body | {"compression": {"retention": retention, "method": "text-cosine"}}


def _show(title: str, outcomes: dict[float, Outcomes]) -> None:
    whole = outcomes.get(1.0)
    rows = []
    for retention, found in outcomes.items():
        firsts = [f"{1000 * percentile(found.first_s, share):.0f}" for share in (0.5, 0.95, 0.99)]
        # Ideal: time falls as the tokens do.
        ideal = "" if whole is None else f"{found.throughput / whole.throughput * retention:.0%}"
        rates = (f"{found.throughput:.2f}", f"{found.tokens / found.elapsed_s:.1f}")
        slowest = f"{1000 * found.percentile(0.95):.0f}"
        rows.append((f"{retention:.0%}", *rates, *firsts, slowest, ideal, found.others()))
    show(title, COLUMNS, rows)


@contextmanager
def _service(kind: str, model: str, prefix_caching: bool) -> Iterator[str]:
    vllm = {"prefix_caching": prefix_caching}
    engine = {"kind": kind, "ongoing": 64, "waiting": 64, "max_prompt_tokens": 4096, "vllm": vllm}
    config = ServiceConfig.model_validate({"model": {"path": model}, "engine": engine, "media": {"waiting_jobs": 64}})
    port = free_port()
    with connected(None), running_service(config, HOST, port):
        yield f"http://{HOST}:{port}"


def _memory() -> int:
    """Largest resident memory so far of the engine replica and the processes below it."""
    replicas = [
        each for each in psutil.Process().children(recursive=True) if ENGINE_PROCESS in " ".join(each.cmdline())
    ]
    return sum(_peak(process) for replica in replicas for process in (replica, *replica.children(recursive=True)))


def _peak(process: psutil.Process) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (peak,) = (line.split()[1] for line in lines if line.startswith("VmHWM"))
    return 1024 * int(peak)


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",")]


if __name__ == "__main__":
    typer.run(main)
