"""``make bench``: what the distributed system costs over a plain process, side by side in one run.

Rollouts: combinations scored per second by one plain process calling ``roll_out``, by two rollout actors
through the pool, and by the whole system (two actors, one learner, replay). Learner: seconds of one
optimiser step in plain PyTorch and through the DeepSpeed learner group. Rounds alternate, so that a drift
of the machine's speed hits both sides; ratios are taken within a round.
"""

import tempfile
from dataclasses import dataclass

import ray
import torch
import typer

from actors.task import RolloutTask, parts
from benchmarks.plain_learner import PlainLearner
from benchmarks.table import show_ratios
from benchmarks.timing import alternating_rounds
from cacovid.config import TrainConfig
from cacovid.config_files import with_overrides
from cacovid.data.reader import ItemReader
from cacovid.policy.base import CompressionPolicy
from cacovid.policy.build import policy_for
from cacovid.records import HeldRecord, RolloutRecord
from cacovid.rollout import RolloutRequest, roll_out
from cluster.ray_cluster import connected
from cluster.training.cpo import CPO, CPOConfig
from learner.training_data import RecordData

ROUNDS = 5
STEPS_PER_ROUND = 4
CLIPS = 64


@dataclass(frozen=True)
class Plain:
    """One process with a reader and a policy, and nothing else."""

    reader: ItemReader
    policy: CompressionPolicy
    config: TrainConfig

    def roll_out(self, algorithm: CPO, step: int) -> list[RolloutRecord]:
        """The rollouts of one training step."""
        request = RolloutRequest(self.config.run.seed, step, 0, 2)
        return [
            roll_out(self.reader.video_llm, self.policy, self.reader.encode(item), item, self.config.sampling, request)
            for item in algorithm.order.of_step(step)
        ]


def pooled(algorithm: CPO, steps: range) -> None:
    """Rollouts of ``steps`` through the actors, without the learner."""
    tasks = [
        RolloutTask(step, part, algorithm.schedule.newest, 2)
        for step in steps
        for part in parts(algorithm.order.of_step(step), 2)
    ]
    algorithm.pool.collect(algorithm.pool.submit(tasks))


def main() -> None:
    """What Ray and DeepSpeed cost over a plain process, side by side, printed as two tables."""
    torch.set_num_threads(1)
    with connected(None), tempfile.TemporaryDirectory() as folder:
        overrides = {"data.train_clips": CLIPS, "run.steps": 10_000, "data.cache_bytes": 0}
        config = with_overrides(TrainConfig(), overrides)
        algorithm: CPO = CPOConfig.from_train_config(config).training(run_dir=folder).build_algo()
        try:
            _rollouts(algorithm, config)
            _learner(algorithm, config)
        finally:
            algorithm.stop()


def _plain(config: TrainConfig) -> Plain:
    reader = ItemReader.load(config.model, config.data, None)
    return Plain(reader, policy_for(reader.video_llm, config), config)


def _rollouts(algorithm: CPO, config: TrainConfig) -> None:
    plain = _plain(config)
    steps = range(STEPS_PER_ROUND)
    combinations = STEPS_PER_ROUND * config.run.items_per_step * config.sampling.group

    def system() -> None:
        for _ in steps:
            algorithm.train()

    def one_process() -> None:
        for step in steps:
            plain.roll_out(algorithm, step)

    for warm in (one_process, system):
        warm()
    sides = {
        "one plain process": one_process,
        "two rollout actors": lambda: pooled(algorithm, steps),
        "whole system: two actors, one learner, replay": system,
    }
    times = alternating_rounds(sides, ROUNDS, before=algorithm.pool.settle)
    title = f"combinations scored per second, median of {ROUNDS} rounds of {combinations}"
    show_ratios(title, "combinations/s", times, lambda taken: combinations / taken)


def _learner(algorithm: CPO, config: TrainConfig) -> None:
    plain = _plain(config)
    records = [record for step in range(3) for record in plain.roll_out(algorithm, step)]
    records = records[: config.objective.replay_batch]
    learner = PlainLearner(plain.policy, config.objective, config.optimizer, config.total_updates())
    handles = [HeldRecord.of(record, ray.put) for record in records]

    def through_group() -> None:
        algorithm.learner_group.update(training_data=RecordData(records=list(handles)))

    def in_process() -> None:
        learner.update(records)

    in_process()
    through_group()
    sides = {"plain PyTorch": in_process, "DeepSpeed learner process, records by reference": through_group}
    times = alternating_rounds(sides, 4 * ROUNDS)
    title = f"one optimiser step on {len(records)} questions, median of {4 * ROUNDS} rounds"
    show_ratios(title, "milliseconds", times, lambda taken: 1000 * taken)


if __name__ == "__main__":
    typer.run(main)
