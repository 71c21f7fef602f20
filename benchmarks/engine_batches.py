"""Prompts of mixed lengths through the transformers engine, beside static batches of equal kept counts.

    python -m benchmarks.engine_batches

The static side is what the engine did before: prompts that keep equally many tokens go through ``generate`` together,
one group after the other, all at once. Both write the same tokens; encoding is not in the times.
"""

import random
import time
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import torch
import typer

from benchmarks.table import show
from benchmarks.timing import Spread, Work, alternating_rounds
from cacovid.config import ModelConfig
from cacovid.embedded.clips import draw_clip
from cacovid.models.adapter import VideoLLM
from cacovid.models.loading import load_video_llm
from serving.config import EngineConfig
from serving.engine.engine import Engine
from serving.engine.generation import JoiningBatches
from serving.engine.join import join
from serving.engine.prompts import Job, Prompt, PromptBuilder
from serving.engine.records import CompressionWish, Decoding, EngineRequest, Event
from serving.media.records import Clip


class Sides:
    """The same questions for both."""

    def __init__(self, llm: VideoLLM, retentions: Sequence[float], tokens: int, batch: int) -> None:
        self.llm = llm
        self.tokens = tokens
        self.batch = batch
        self.config = EngineConfig(max_batch=batch)
        self.engine = Engine(llm, self.config, "model", JoiningBatches(llm, self.config))
        self.jobs: list[Job] = []
        self.first: list[float] = []  # seconds to the first token of each request of the last call
        clip = draw_clip(0).frames
        shown = Clip(clip, tuple(map(float, range(len(clip)))), 8.0, 1.0, "clip", 0.0, 0.0)
        content = [{"type": "video"}, {"type": "text", "text": "what color is the ring object"}]
        for retention in retentions:
            wish = CompressionWish(retention=retention, method="uniform")
            request = EngineRequest("model", ({"role": "user", "content": content},), wish, Decoding(tokens))
            self.jobs.append(Job(request, [shown], lambda event: None))
        builder = PromptBuilder(llm, self.config)
        self.prompts = [builder.encode(job, None) for job in self.jobs]
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

    def together(self) -> None:
        """The engine, which takes the next request as soon as there is room."""
        started = time.perf_counter()
        self.first = []
        seen: set[int] = set()
        ended = [0]

        def sink(number: int, event: Event) -> None:
            if type(event).__name__ == "Delta" and number not in seen:
                seen.add(number)
                self.first.append(time.perf_counter() - started)
            ended[0] += type(event).__name__ == "Finished"

        jobs = [Job(job.request, job.clips, partial(sink, number)) for number, job in enumerate(self.jobs)]
        given = iter(jobs)

        def more() -> list[Job]:
            room = self.batch - sum(job.started > 0 and not job.ended for job in jobs)
            return [job for _, job in zip(range(room), given, strict=False)]

        self.engine.run(more(), more)
        assert ended[0] == len(jobs)

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


def main(
    requests: Annotated[int, typer.Option(min=1, help="prompts")] = 32,
    tokens: Annotated[int, typer.Option(min=1, help="tokens of every answer")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="engine.max_batch")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="turns of each side")] = 5,
    model: Annotated[str, typer.Option(help="'embedded' or a folder")] = "embedded",
) -> None:
    """Print tokens per second and time to the first token."""
    torch.set_num_threads(1)
    llm = load_video_llm(ModelConfig(path=model))
    llm.end_tokens = []  # every answer has all of its tokens
    draw = random.Random(0)
    mixed = [draw.uniform(0.05, 0.95) for _ in range(requests)]
    for name, retentions in {"mixed": mixed, "equal": [0.1] * requests}.items():
        sides = Sides(llm, retentions, tokens, batch)
        waits: dict[str, list[float]] = {}

        def told(side: str, work: Work, sides: Sides = sides, waits: dict[str, list[float]] = waits) -> None:
            work()
            waits[side] = sorted(sides.first)

        works: dict[str, Work] = {
            "static": lambda sides=sides, told=told: told("static", sides.static),  # type: ignore[misc]
            "engine": lambda sides=sides, told=told: told("engine", sides.together),  # type: ignore[misc]
        }
        alternating_rounds(works, 1)
        times = alternating_rounds(works, rounds)
        rows = []
        for side, taken in times.items():
            ratio = Spread.of(first / own for first, own in zip(times["static"], taken, strict=True))
            p95 = waits[side][int(0.95 * len(waits[side]))]
            speed = requests * tokens / Spread.of(taken).median
            rows.append((side, f"{speed:.0f}", str(ratio), f"{1000 * p95:.0f}"))
        show(
            f"{name} prompts ({sides.lengths()}), {requests} requests of {tokens} tokens, batches of {batch}",
            ("", "tokens/s", "times static", "first token p95 ms"),
            rows,
        )


if __name__ == "__main__":
    typer.run(main)
