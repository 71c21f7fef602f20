"""Prompts of mixed lengths through the engines, beside static batches of equal kept counts.

    python -m benchmarks.engine_batches
    taskset -c 0 python -m benchmarks.engine_batches --kinds transformers,vllm    # one core; where vLLM is installed

The static side is what the engine did before: prompts that keep equally many tokens go through ``generate`` together,
one group after the other, all at once. All write the same tokens; the tower is not in the times.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import torch
import typer

from benchmarks.endless import NAME, endless_model
from benchmarks.load import percentile
from benchmarks.table import show
from benchmarks.timing import Spread, alternating_rounds
from cacovid.config import ModelConfig
from cacovid.embedded.clips import draw_clip
from cacovid.errors import UserError
from cacovid.models.adapter import VideoLLM
from cacovid.models.loading import load_video_llm
from serving.answerers import answerer_for
from serving.config import EngineConfig
from serving.engine.batcher import Batcher
from serving.engine.engine import Engine
from serving.engine.join import join
from serving.engine.prompts import Job, Prompt, PromptBuilder
from serving.engine.records import CompressionWish, Decoding, Delta, EngineRequest, Finished
from serving.media.records import Clip

Side = Callable[["Sides"], object]


class Sides:
    """The same questions for all; ``first`` has the seconds to each first token of the last call."""

    def __init__(self, llm: VideoLLM, retentions: Sequence[float], tokens: int, batch: int) -> None:
        self.llm = llm
        self.tokens = tokens
        self.batch = batch
        self.first: list[float] = []
        clip = draw_clip(0).frames
        self.clips = [Clip(clip, tuple(map(float, range(len(clip)))), 8.0, 1.0, "clip", 0.0, 0.0)]
        content = [{"type": "video"}, {"type": "text", "text": "what color is the ring object"}]
        self.requests = [
            EngineRequest(NAME, ({"role": "user", "content": content},), wish, Decoding(tokens))
            for wish in (CompressionWish(retention=retention, method="uniform") for retention in retentions)
        ]
        builder = PromptBuilder(llm, EngineConfig())
        self.prompts = [builder.encode(Job(request, self.clips, lambda event: None), None) for request in self.requests]
        for prompt in self.prompts:
            builder.select(prompt)

    def lengths(self) -> str:
        """Of the compressed prompts."""
        sizes = [prompt.length for prompt in self.prompts]
        return f"{min(sizes)} to {max(sizes)} tokens"

    def static(self) -> None:
        """Groups of equal kept counts, cut into batches."""
        started = time.perf_counter()
        self.first = []
        waiting = list(self.prompts)
        while waiting:
            part, waiting = waiting[: self.batch], waiting[self.batch :]
            groups: dict[int, list[Prompt]] = {}
            for prompt in part:
                groups.setdefault(len(prompt.kept), []).append(prompt)
            for group in groups.values():
                self._generate(group, started)

    def through(self, batcher: Batcher, loop: asyncio.AbstractEventLoop) -> None:
        """All sent at once to an engine, which begins the next one as soon as there is room."""
        started = time.perf_counter()
        self.first = []

        async def ask(request: EngineRequest) -> None:
            waiting = True
            async for event in batcher.events(request, self.clips):
                if waiting and isinstance(event, Delta):
                    self.first.append(time.perf_counter() - started)
                    waiting = False
            assert isinstance(event, Finished), event

        async def ask_all() -> None:
            await asyncio.gather(*map(ask, self.requests))

        loop.run_until_complete(ask_all())

    @torch.inference_mode()
    def _generate(self, group: Sequence[Prompt], started: float) -> None:
        llm = self.llm
        packed = [llm.pack(prompt.encoded, prompt.kept[None], prompt.positions) for prompt in group]
        arguments: dict[str, Any] = join(packed, int(llm.model.generation_config.pad_token_id))
        first: list[float] = []

        def watch(input_ids: torch.Tensor, scores: torch.Tensor, **more: object) -> bool:
            first.append(time.perf_counter() - started)
            return False

        llm.model.generate(
            **arguments,
            min_new_tokens=self.tokens,
            max_new_tokens=self.tokens,
            use_cache=True,
            stopping_criteria=[watch],
        )
        self.first += first[:1] * len(group)


@contextmanager
def engine(kind: str, model: str, batch: int) -> Iterator[Side]:
    """Work that sends the questions of a ``Sides`` to an engine of ``kind``."""
    llm = load_video_llm(ModelConfig(path=model))
    config = EngineConfig.model_validate({"kind": kind, "max_batch": batch})
    loop = asyncio.new_event_loop()
    batcher = Batcher(Engine(llm, config, NAME, answerer_for(llm, config, _died)), config)

    async def started() -> None:
        batcher.start()

    loop.run_until_complete(started())
    try:
        yield lambda sides: sides.through(batcher, loop)
    finally:
        loop.run_until_complete(batcher.stop())


def _died() -> None:
    raise UserError("vLLM's core died: see its lines above")


def main(
    kinds: Annotated[str, typer.Option(help="engine.kind, several by commas")] = "transformers",
    requests: Annotated[int, typer.Option(min=1, help="prompts")] = 32,
    tokens: Annotated[int, typer.Option(min=1, help="tokens of every answer")] = 32,
    batch: Annotated[
        int, typer.Option(min=1, help="answers that transformers write together; vLLM has its default")
    ] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="turns of each side")] = 5,
) -> None:
    """Print tokens per second and time to the first token."""
    torch.set_num_threads(1)
    draw = random.Random(0)
    mixed = [draw.uniform(0.05, 0.95) for _ in range(requests)]
    with ExitStack() as stack:
        model = endless_model(Path(stack.enter_context(TemporaryDirectory())) / NAME)
        llm = load_video_llm(ModelConfig(path=model))
        engines = {kind: stack.enter_context(engine(kind, model, batch)) for kind in kinds.split(",")}
        for name, retentions in {"mixed": mixed, "equal": [0.1] * requests}.items():
            sides = Sides(llm, retentions, tokens, batch)
            works = {"static": Sides.static} | engines
            rows = _rows(sides, works, rounds)
            title = f"{name} prompts ({sides.lengths()}), {requests} requests of {tokens} tokens, batches of {batch}"
            show(title, ("", "tokens/s", "times static", "first token p95 ms"), rows)


def _rows(sides: Sides, works: Mapping[str, Side], rounds: int) -> list[tuple[str, ...]]:
    waits: dict[str, list[float]] = {name: [] for name in works}

    def told(name: str) -> None:
        works[name](sides)
        waits[name] += sides.first

    turns = {name: partial(told, name) for name in works}
    alternating_rounds(turns, 1)
    for wait in waits.values():
        wait.clear()
    times = alternating_rounds(turns, rounds)
    written = len(sides.requests) * sides.tokens
    return [
        (
            name,
            f"{written / Spread.of(taken).median:.0f}",
            str(Spread.of(first / own for first, own in zip(times["static"], taken, strict=True))),
            f"{1000 * percentile(waits[name], 0.95):.0f}",
        )
        for name, taken in times.items()
    ]


if __name__ == "__main__":
    typer.run(main)
