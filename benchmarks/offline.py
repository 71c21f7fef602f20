"""What a policy learns from stored answers: apart from what its own draws add, and without paying for any twice.

    python -m benchmarks.offline --config configs/paper.toml --out runs/offline --questions 1000 --updates 600 \\
        --set objective.replay_batch=16 --set optimizer.lr=2e-3

Each question gets one group of combinations that follow no policy (the plain tops aside), the numbers of
``sampling.tokens_per_frame`` in turn. With ``--runs`` the answers are those that these runs have in their replay
buffers. Every seed trains a fresh policy on them, with the learning settings of the configuration.
"""

import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.accuracy import accuracy_of
from benchmarks.plain_learner import PlainLearner
from benchmarks.table import show
from cacovid.config import TrainConfig
from cacovid.config_files import load_config, with_overrides
from cacovid.data.reader import ItemReader
from cacovid.data.skipped import SkippedItems
from cacovid.embedded.items import evaluation_items, training_items
from cacovid.errors import UserError
from cacovid.methods.registry import POLICY
from cacovid.policy.base import CompressionPolicy
from cacovid.policy.build import policy_for
from cacovid.records import Rollout, RolloutRecord, VideoQuestion
from cacovid.rollout import RolloutRequest, look_again, roll_out
from cacovid.seeding import generator
from cluster.commands.progress import Progress
from cluster.commands.shared import ConfigFile, Overrides, run_plainly
from cluster.training.cpo import STATE
from cluster.training.run_directory import RunDirectory

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="folder of clips and answers; what is there is not asked again")],
    updates: Annotated[int, typer.Option(min=1, help="optimiser steps of each policy")],
    config: ConfigFile = None,
    overrides: Overrides = None,
    questions: Annotated[int, typer.Option(min=1, help="training questions answered")] = 1_000,
    runs: Annotated[list[Path] | None, typer.Option(help="take the answers from these runs; repeatable")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="policies, of seeds 0, 1, ...")] = 1,
    clips: Annotated[int, typer.Option(min=1, help="development clips measured on")] = 50,
) -> None:
    """Answer once, then train and measure a policy a seed."""
    cache = (runs[0] if runs else out).absolute() / "cache"
    cfg = with_overrides(load_config(config, overrides or []), {"data.cache_dir": str(cache)})
    if cfg.objective.by_drawing_policy():
        raise UserError(f"objective.ratio={cfg.objective.ratio!r}: stored answers know no such policy, use 'current'")
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    skipped = SkippedItems(out / "skipped.jsonl", cfg.data.max_skipped)
    reader = ItemReader.load(cfg.model, cfg.data, cache)
    with Progress() as progress:
        if runs:
            items, rollouts = training_items(cfg, runs[0], skipped), [each for run in runs for each in held(run)]
        else:
            items = training_items(cfg, out, skipped)[:questions]
            rollouts = answered(reader, items, cfg, out / "answers.pkl", progress)
        records = list(with_inputs(rollouts, items, reader))
        measured = evaluation_items(cfg.data.train, "development", clips, out, skipped)
        rows = []
        for seed in range(seeds):
            seeded = with_overrides(cfg, {"run.seed": seed})
            policy = policy_for(reader.video_llm, seeded)
            trained(policy, records, seeded, updates, progress)
            rows.append(row(policy, measured, seeded))
    answers = sum(len(scored.reward) for rollout in rollouts for scored in rollout.iterations)
    title = f"{updates} updates from {answers:,} answers ({len(rollouts):,} times a group), in % of all tokens'"
    ratios = [f"{100 * retention:g} %" for retention in cfg.evaluation.retentions]
    show(title, ("policy", "parameters", *ratios, "AUC"), rows)


def held(folder: Path) -> list[Rollout]:
    """The rollouts in the newest checkpoint of a run.

    Raises:
        UserError: It has none.
    """
    checkpoint = RunDirectory(folder).newest_checkpoint()
    if checkpoint is None:
        raise UserError(f"{folder} has no checkpoint: give the folder of a run that has finished a few steps")
    state = pickle.loads((checkpoint / "algorithm_state.pkl").read_bytes())
    return [rollout for rollout, _ in state[STATE]["replay"].entries]


def answered(
    reader: ItemReader, items: Sequence[VideoQuestion], config: TrainConfig, path: Path, progress: Progress
) -> list[Rollout]:
    """One rollout of each item, drawn evenly; from ``path`` what is there."""
    settings = (config.model, config.sampling, len(items))
    if path.exists():
        known, rollouts = pickle.loads(path.read_bytes())
        if known == settings:
            return list(rollouts)
    policy, choices = policy_for(reader.video_llm, config), config.sampling.tokens_per_frame
    rollouts = []
    for number, item in enumerate(items):
        tokens = choices[number % len(choices)] if choices else None
        request = RolloutRequest(0, 0, 0, tokens, explore=1.0)
        record = roll_out(reader.video_llm, policy, reader.encode(item), item, config.sampling, request)
        rollouts.append(record.parts()[0])
        progress.show("answers", number + 1, len(items))
    path.write_bytes(pickle.dumps((settings, rollouts)))
    return rollouts


def with_inputs(
    rollouts: Sequence[Rollout], items: Sequence[VideoQuestion], reader: ItemReader
) -> Iterator[RolloutRecord]:
    """Records as a learner takes them, without the logits of the policy that drew."""
    wanted = {rollout.item_id for rollout in rollouts}
    # In the items' order: questions about one clip stand side by side and share its features.
    seen = {item.id: look_again(reader.encode(item), None) for item in items if item.id in wanted}
    for rollout in rollouts:
        yield RolloutRecord.of(rollout, seen[rollout.item_id])


def trained(
    policy: CompressionPolicy, records: Sequence[RolloutRecord], config: TrainConfig, updates: int, progress: Progress
) -> None:
    """``updates`` optimiser steps on batches drawn from ``records``."""
    learner = PlainLearner(policy, config.objective, config.optimizer, updates)
    for update in range(updates):
        order = torch.randperm(len(records), generator=generator(config.run.seed, "offline", update))
        learner.update([records[place] for place in order[: config.objective.replay_batch].tolist()])
        progress.show(f"seed {config.run.seed}", update + 1, updates)


def row(policy: CompressionPolicy, items: Sequence[VideoQuestion], config: TrainConfig) -> list[str]:
    """The line of one policy."""
    result = accuracy_of(policy.eval(), items, config)
    shares = [
        f"{100 * result.row(POLICY, retention).accuracy / result.full_accuracy:.1f}"
        for retention in config.evaluation.retentions
    ]
    size = sum(parameter.numel() for parameter in policy.parameters())
    name = f"{config.policy.kind}, seed {config.run.seed}"
    return [name, f"{size:,}", *shares, f"{result.question_awareness_auc or 0:.3f}"]


if __name__ == "__main__":
    run_plainly(app)
