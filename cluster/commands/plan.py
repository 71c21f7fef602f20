"""``cacovid plan``: memory, operations and GPUs of a configured run, from shapes alone."""

from math import floor
from typing import TYPE_CHECKING, Annotated

import typer

from cacovid.errors import UserError
from cluster.commands.shared import ConfigFile, Overrides

if TYPE_CHECKING:
    from rich.table import Table

    from cacovid.config import TrainConfig
    from cacovid.planning.plan import Plan

GIB = 1024**3


def plan(
    config: ConfigFile = None,
    overrides: Overrides = None,
    frame_size: Annotated[str, typer.Option(help="WIDTHxHEIGHT of the videos, for models that follow it")] = "640x360",
) -> None:
    """Print what an actor and a learner need and how many of them fit which GPUs. Loads no weights."""
    width, height = _frame_size(frame_size)
    from rich.console import Console

    from cacovid.config_files import load_config
    from cacovid.planning.plan import make_plan

    settings = load_config(config, overrides or [])
    made = make_plan(settings, width, height)
    console = Console()
    console.print(_costs(settings, made))
    console.print(_gpus(made))
    console.print(
        f"By operations alone, {made.actors_per_learner:.3g} actors keep one learner of the same GPU busy. "
        "Memory beside weights is an estimate; operations count whole attention squares.",
        highlight=False,
    )
    places, busy = settings.actors.places, settings.busy_actors()
    if places > busy:
        console.print(
            f"Of {places} rollout actors at most {busy} have a task at the same time: lower "
            "actors.items_per_task, or raise actors.parts_per_item, run.items_per_step or actors.staleness",
            style="yellow",
            highlight=False,
        )


def _frame_size(text: str) -> tuple[int, int]:
    width, _, height = text.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise UserError(f"--frame-size {text!r} is no size: write WIDTHxHEIGHT, e.g. 640x360")
    return int(width), int(height)


def _costs(settings: "TrainConfig", made: "Plan") -> "Table":
    from rich.table import Table

    grid, replica, policy, learner = made.grid, made.replica, made.policy, made.learner
    copied = f", {_short(policy.pretrained)} copied from the model" if policy.pretrained else ""
    replay = f"; replay holds {made.replay_items} items" if made.replay_items else ""
    table = Table(title=settings.model.path, show_header=False)
    rows = [
        ("video tokens", f"{grid.tokens:,} = {grid.frames} steps x {grid.rows}x{grid.columns}; text {made.text}"),
        *((name, f"{_short(count)} parameters") for name, count in replica.parameters.items()),
        ("one actor", f"{replica.total_bytes / GIB:.1f} GiB, of it weights {replica.weight_bytes / GIB:.1f}"),
        ("encode one clip", _operations(replica.encode_flops)),
        ("prefill, all tokens", _operations(replica.full_flops)),
        (f"prefill, {made.kept} tokens", _operations(replica.kept_flops)),
        ("embeddings of one item", f"{_short(replica.item_bytes)}B{replay}"),
        (
            f"policy '{settings.policy.kind}'",
            f"{_short(policy.parameters)} parameters{copied}",
        ),
        ("policy on one prompt", _operations(policy.forward_flops)),
        (
            "one learner alone",
            f"{learner.total_bytes()[0] / GIB:.1f} GiB, micro-batches of {learner.prompts_per_micro_batch} prompts",
        ),
        ("rollout actors", f"at most {settings.busy_actors()} have a task at the same time"),
        (
            "one training step",
            f"rollouts {_operations(made.rollout_flops)}, learning {_operations(made.learning_flops)}",
        ),
        (
            f"answers of {settings.run.steps} steps",
            f"{made.answers:,} combinations x {_operations(made.answer_flops)} = "
            f"{_operations(made.answers * made.answer_flops)}, to the first word of each",
        ),
    ]
    for name, value in rows:
        table.add_row(name, value)
    return table


def _gpus(made: "Plan") -> "Table":
    from rich.table import Table

    table = Table("GPU", "actors on it", "actors.gpus", "learners needed", "actors beside one learner")
    for fit in made.fits:
        if fit.actors:  # rounded down: together they must not ask for more than the GPU
            share = f"{floor(1e4 / fit.actors) / 1e4:g}"
        else:
            share = f"{fit.spread_over} (spread)" if fit.spread_over else "does not fit"
        needed = str(fit.learners) if fit.learners else "none fit: raise zero_stage or lower micro_batch_tokens"
        table.add_row(fit.gpu.name, str(fit.actors), share, needed, str(fit.shared_actors))
    return table


def _operations(count: int) -> str:
    return f"{_short(count)}FLOP"


def _short(count: float) -> str:
    """Three digits and a prefix: 21300000000000 -> '21.3 T'."""
    for prefix, unit in (("E", 1e18), ("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= unit:
            return f"{count / unit:.3g} {prefix}"
    return f"{count:.3g} "
