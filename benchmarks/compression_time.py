"""How long each method takes to choose or merge the tokens of one clip, all side by side in one run.

    python -m benchmarks.compression_time [--width 896 --width 3584] [--retention 0.1] [--rounds 3] [--device cpu]

Made features with a still background, of LLaVA-OneVision's grid of 32 frames. Timed is what happens before the
LLM: from encoded features to the reduction, networks and selection included. Not timed: steps within the LLM (those
of FastV are all of it) and the vision tower's attention, which VisionZip, FlashVID and HoliTom are given.

Shape legend: N video tokens, D width.
"""

from collections.abc import Callable
from functools import partial
from typing import Annotated

import torch
import typer

from benchmarks.table import show
from benchmarks.timing import Spread, alternating_rounds
from cacovid.config import PolicyConfig, SelectionConfig
from cacovid.errors import NotDefined
from cacovid.methods.baselines.text_cosine import TextCosine
from cacovid.methods.inside_steps import InsideBaseline
from cacovid.methods.policy_method import PolicyMethod
from cacovid.methods.protocol import EvaluationCase, Method, reduction_by
from cacovid.methods.registry import BASELINES
from cacovid.models.encoded import Encoded
from cacovid.models.tower_attention import TowerAttention
from cacovid.planning.backbone import known_backbones
from cacovid.policy.build import build_policy
from cacovid.policy.decoder_layer import FirstLayer, LayerSpec
from cacovid.records import TokenGrid, VideoQuestion
from cacovid.seeding import generator

OURS, PAPER = "late", "paper"
TEXT = 24  # prompt columns beside the video
TOWER_HEAD = 72  # width of a tower's head
LAYERS = 28

app = typer.Typer()


def made_case(grid: TokenGrid, width: int, device: str) -> EvaluationCase:
    """A clip whose background stands still and whose last quarter of places changes with every frame."""
    draw = generator("compression time", width)
    scene = torch.randn(1, grid.per_frame, width, generator=draw).expand(grid.frames, -1, -1)
    noise = torch.randn(grid.frames, grid.per_frame, width, generator=draw)
    moving = torch.arange(grid.per_frame) >= grid.per_frame * 3 // 4
    features = torch.where(moving[None, :, None], noise, scene + 0.2 * noise).flatten(0, 1)
    tokens, length = grid.tokens, grid.tokens + TEXT
    received = torch.rand(tokens, generator=draw)
    keys = torch.randn(tokens, TOWER_HEAD, generator=draw)
    encoded = Encoded(
        input_ids=torch.zeros(length, dtype=torch.long, device=device),
        position_ids=torch.arange(length, device=device)[None],
        grid=grid,
        features=features.to(device),
        video_columns=torch.arange(tokens, device=device),
        text_columns=torch.arange(tokens, length, device=device),
        text_embeds=torch.randn(TEXT, width, generator=draw).to(device),
        pinned=torch.zeros(0, width, device=device),
        pinned_columns=torch.zeros(0, dtype=torch.long, device=device),
        reach=length,
        tower=TowerAttention(received.to(device), keys.to(device)),
    )
    item = VideoQuestion("q", "v.mp4", "what is it?", (), "", "free-form", "made", evidence=tuple(range(40)))
    return EvaluationCase(item, encoded, 0)


def all_methods(width: int, device: str, *, paper: bool) -> list[Method]:
    """Ours, with ``paper`` the paper's policy where a shape of this width is known, and every baseline."""
    ours = build_policy(PolicyConfig(), width, seed=0).to(device).eval()
    methods: list[Method] = [PolicyMethod(OURS, ours, SelectionConfig())]
    for shape in known_backbones().values() if paper else ():
        text = shape.config["text_config"]
        if text["model_type"] == "qwen2" and text["hidden_size"] == width:
            layer = FirstLayer.from_spec(LayerSpec(model_type="qwen2", text_config={**text, "vocab_size": 1}))
            theirs = build_policy(PolicyConfig(kind="paper"), width, layer, seed=0).to(device).eval()
            methods.append(PolicyMethod(PAPER, theirs, SelectionConfig()))
            break
    for baseline in BASELINES.values():
        if issubclass(baseline, InsideBaseline):
            methods.append(baseline(LAYERS))
        elif issubclass(baseline, TextCosine):
            methods.append(baseline(lambda _: torch.randn(4, width, generator=generator("words")).to(device)))
        else:
            methods.append(baseline())
    return methods


def run(method: Method, case: EvaluationCase, retention: float, device: str) -> None:
    """One reduction, finished on its device."""
    reduction_by(method, case, retention)
    if device == "cuda":
        torch.cuda.synchronize()


def measure(
    grid: TokenGrid, width: int, retention: float, rounds: int, device: str, *, paper: bool = False
) -> dict[str, tuple[float, ...]]:
    """Seconds of each method that is defined, in each round; the policies first."""
    case, sides = made_case(grid, width, device), {}
    for method in all_methods(width, device, paper=paper):
        work: Callable[[], None] = partial(run, method, case, retention, device)
        try:
            work()  # warm-up
        except NotDefined:
            continue
        sides[method.name] = work
    with torch.inference_mode():
        return alternating_rounds(sides, rounds)


@app.command()
def main(
    width: Annotated[list[int] | None, typer.Option(help="of the language model; repeatable")] = None,
    retention: Annotated[float, typer.Option(help="share of the tokens to keep")] = 0.1,
    rounds: Annotated[int, typer.Option(min=1, help="in which all methods take turns")] = 3,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    paper: Annotated[
        bool, typer.Option("--paper", help="the paper's policy too: half a minute a run on a CPU")
    ] = False,
    frames: Annotated[int, typer.Option(min=1)] = 32,
    side: Annotated[int, typer.Option(min=1, help="rows and columns of a frame's tokens")] = 14,
) -> None:
    """Compression time of all methods side by side."""
    grid = TokenGrid(frames, side, side)
    for each in width or [896, 3584]:
        times = measure(grid, each, retention, rounds, device, paper=paper)
        rows = []
        for name, taken in times.items():
            ratio = Spread.of(other / own for own, other in zip(times[OURS], taken, strict=True))
            rows.append((name, f"{1000 * Spread.of(taken).median:.1f}", str(ratio)))
        title = f"{grid.frames}*{grid.rows}*{grid.columns} tokens of width {each}, {retention:.0%} kept, on {device}"
        show(title, ("", "ms", f"ratio to {OURS} (min - max)"), rows)


if __name__ == "__main__":
    app()
