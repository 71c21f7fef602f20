"""Whether a configuration continues a run: it must learn the same, but may do so elsewhere and in other places.

What a run learns is the same whatever the number of its processes, the machine and the ZeRO stage, so a manifest may be
run again with other ones. ``run.steps`` may be raised as well: the learning rate's schedule then ends later.
"""

from pathlib import Path

from cacovid.config import TrainConfig
from cacovid.errors import UserError

SECTIONS = frozenset({"actors", "learners", "evaluation"})  # where and what for; not what is learned
LEARNED = frozenset({"actors.staleness", "learners.bf16"})  # but these are
FIELDS = frozenset(
    {
        "model.device",
        "model.attention",
        "model.max_batch_tokens",
        "data.cache_dir",
        "data.cache_bytes",
        "data.max_skipped",
        "run.steps",
        "run.checkpoint_every",
        "run.keep_checkpoints",
        "run.reuse_bytes",
        "run.stop_grace_s",
        "run.start_timeout_s",
        "run.tracking",
        "run.tracking_project",
        "run.mlflow_uri",
        "run.wandb_mode",
        "run.store_timeout_s",
    }
)


def may_change(field: str) -> bool:
    """Whether a run may go on with another value of ``section.name``."""
    return field in FIELDS or (field.partition(".")[0] in SECTIONS and field not in LEARNED)


def check_same_run(saved: TrainConfig, given: TrainConfig, folder: str | Path) -> None:
    """See that ``given`` continues the run of ``saved``.

    Raises:
        UserError: It would learn something else; each such field is named with both values.
    """
    before, now = saved.by_name(), given.by_name()
    other = [name for name in before if before[name] != now[name] and not may_change(name)]
    if other:
        changes = ", ".join(f"{name} was {before[name]!r} and is {now[name]!r}" for name in other)
        raise UserError(
            f"{folder} holds a run of another configuration ({changes}): give the same one or --resume {folder} to "
            "continue it, --fresh to set it aside and start over, or choose another --out"
        )
    if given.run.steps < saved.run.steps:
        raise UserError(
            f"{folder} holds a run of {saved.run.steps} steps, which cannot become {given.run.steps}: run.steps may "
            "only be raised"
        )
