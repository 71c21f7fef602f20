"""``python -m benchmarks.real_shape CONFIG``: prints the stages' costs as a Markdown table."""

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.real_shape.random_model import random_llava_onevision, shape_of
from benchmarks.real_shape.stages import Stage, Stopwatch, learner_stage, replica_stages
from cacovid.config_files import load_config
from cacovid.errors import UserError
from cacovid.policy.build import policy_for
from cluster.commands.shared import Overrides

GIB = 1024**3
RETENTIONS = (1.0, 0.25, 0.1)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    config: Annotated[Path, typer.Argument(help="a run's TOML file; model.path names a shipped LLaVA-OneVision shape")],
    overrides: Overrides = None,
    questions: Annotated[
        int | None, typer.Option(min=1, help="questions of the learner step; without it the run's own number")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="timed runs of each stage, after one that warms up")] = 5,
    reduced: Annotated[bool, typer.Option("--reduced", help="the shape in miniature, to try it on a CPU")] = False,
) -> None:
    """Time a rollout and a learner step of CONFIG with a random model of the real shape. Downloads nothing."""
    settings = load_config(config, overrides or [])
    numbers = shape_of(settings.model.path, reduced=reduced)
    video_llm = random_llava_onevision(numbers, settings.model, settings.run.seed)
    device = video_llm.device
    watch = Stopwatch(device, repeats)
    weights = sum(weight.numel() * weight.element_size() for weight in video_llm.model.parameters())
    policy = policy_for(video_llm, settings).to(device).eval()
    stages, record = replica_stages(video_llm, policy, settings, RETENTIONS, watch)
    grid = record.input.grid
    del video_llm  # a learner has a device without a replica
    if device.type == "cuda":
        torch.cuda.empty_cache()
    stages.append(learner_stage(policy, record, settings, questions or settings.questions_per_update(), watch))
    parameters = sum(weight.numel() for weight in policy.parameters())
    typer.echo(
        f"{settings.model.path}{' in miniature' if reduced else ''}, random weights of {weights / GIB:.2f} GiB, "
        f"{grid.frames} steps x {grid.rows}x{grid.columns} = {grid.tokens:,} video tokens, "
        f"policy '{policy.kind}' of {parameters:,} parameters; {_device_name(device)}, torch {torch.__version__}, "
        f"median of {repeats} runs\n"
    )
    typer.echo(markdown(stages))


def markdown(stages: list[Stage]) -> str:
    """A table of the stages: milliseconds, columns read per second, peak memory."""
    lines = ["| stage | ms | tokens/s | peak memory, GiB |", "| --- | ---: | ---: | ---: |"]
    for stage in stages:
        speed = f"{stage.tokens_per_second:,.0f}" if stage.tokens else "-"
        peak = "-" if stage.peak_bytes is None else f"{stage.peak_bytes / GIB:.1f}"
        lines.append(f"| {stage.name} | {1000 * stage.seconds:,.1f} | {speed} | {peak} |")
    return "\n".join(lines)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} with {torch.get_num_threads()} threads"


if __name__ == "__main__":
    try:
        app()
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
