"""One run of the ablations, with all that is measured of it: ``python -m benchmarks.ablations.work WORK`` (JSON).

The run's folder and the figures say what is done already: whoever starts this again goes on there.

    ROOT/                        OUT/answers-N-every-N-clips-N
    ROOT/clips/                  questions that all runs share
    ROOT/runs/OWNER-SEED/        as `cacovid train` writes it
    ROOT/figures/VARIANT-SEED.json
"""

import fcntl
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.ablations.variants import Run, Variant
from cacovid.atomic import writing
from cacovid.config import Section, TrainConfig
from cacovid.config_files import with_overrides
from cacovid.errors import UserError

if TYPE_CHECKING:
    from cluster.training.run_directory import RunDirectory

INTERRUPTED = 130


class Figures(BaseModel):
    """What one seed of a variant came to."""

    model_config = ConfigDict(frozen=True)

    settings: str  # the configuration, as JSON
    answers: int  # combinations scored in training
    full_accuracy: float  # all tokens
    accuracy: dict[float, float]  # by retention
    awareness: float | None  # AUC
    reached: int | None  # answers until the run's own selection met the price's target; None: not in all


class Work(Section):
    """A run of one seed, and the variants to be measured of it."""

    out: Path
    run: Run
    seed: int
    answers: int  # of a run
    every: int  # answers between evaluations
    clips: int  # of the development split

    @property
    def root(self) -> Path:
        """Of all runs of this size: a finished run keeps the rows of its own spacing and clips."""
        return self.out / f"answers-{self.answers}-every-{self.every}-clips-{self.clips}"

    @property
    def name(self) -> str:
        """Of the run."""
        return f"{self.run.owner.name}-{self.seed}"

    @property
    def folder(self) -> Path:
        """Of the run."""
        return self.root / "runs" / self.name

    def only(self, variants: Sequence[Variant]) -> Self:
        """Without measuring any but ``variants``."""
        measured = tuple(each for each in self.run.variants if each in variants)
        return self.model_copy(update={"run": Run(owner=self.run.owner, variants=measured)})

    def config(self, config: TrainConfig) -> TrainConfig:
        """``config`` with what all runs have in common."""
        step = config.combinations_per_step()
        train = self.root / "clips" / f"train-{config.data.clip_seed}-{config.data.train_clips}"
        return with_overrides(
            config,
            {
                "data.train": str(train.absolute() / "questions.parquet"),
                "data.cache_dir": str((self.root / "cache").absolute()),
                "actors.count": 0,
                "learners.count": 0,
                "evaluation.every": max(1, round(self.every / step)),
                "evaluation.data": str(self.development.absolute() / "questions.parquet"),
                "evaluation.clips": self.clips,
                "run.seed": self.seed,
                "run.steps": max(1, round(self.answers / step)),
                "run.keep_checkpoints": 1,
            },
        )

    @property
    def development(self) -> Path:
        """The clips that are measured on."""
        return self.root / "clips" / f"development-{self.clips}"

    def file(self, variant: Variant) -> Path:
        """Where the figures of ``variant`` lie."""
        return self.root / "figures" / f"{variant.name}-{self.seed}.json"

    def figures(self, variant: Variant) -> Figures | None:
        """None where they are not known, or of another configuration."""
        try:
            found = Figures.model_validate_json(self.file(variant).read_text())
        except (FileNotFoundError, ValidationError):
            return None
        return found if found.settings == self.config(variant.measured()).model_dump_json() else None

    def keep(self, variant: Variant, figures: Figures) -> None:
        """Write the figures of ``variant``."""
        self.file(variant).parent.mkdir(parents=True, exist_ok=True)
        with writing(self.file(variant)) as part:
            part.write_text(figures.model_dump_json(indent=2) + "\n")

    def missing(self) -> list[Variant]:
        """What is still to be measured."""
        return [each for each in self.run.variants if self.figures(each) is None]


def train_and_measure(work: Work) -> bool:
    """Do what is not done yet, in one thread; whether that is all (else the run was interrupted, and saved)."""
    config = work.config(work.run.owner.trained())
    _draw_clips(work, config)
    import torch

    from cluster.training.run import train
    from cluster.training.run_directory import RunDirectory

    torch.set_num_threads(1)
    run = RunDirectory.open(work.folder, config)
    try:
        if not run.is_complete(config.run.steps):
            report = partial(_report, config.run.steps)
            if train(config, run, report).interrupted:
                return False
    finally:
        run.release()
    alike = {found.settings: found for each in work.run.variants if (found := work.figures(each)) is not None}
    for variant in work.missing():
        measured = work.config(variant.measured())
        name = measured.model_dump_json()
        if name not in alike:
            print(f"measuring {variant.name}", flush=True)  # noqa: T201 - its log
            alike[name] = _measure(measured, run)
        work.keep(variant, alike[name])
    return True


def _report(steps: int, row: dict[str, float]) -> None:
    print(f"step {row['step'] + 1:.0f}/{steps}", flush=True)  # noqa: T201 - its log


def _draw_clips(work: Work, config: TrainConfig) -> None:
    """Draw what is not there yet: all runs share it, and one process draws."""
    from cacovid.embedded.dataset import TABLE, write_dataset
    from cacovid.embedded.splits import split_seeds

    clips = {
        Path(config.data.train).parent: split_seeds("train", config.data.train_clips, config.data.clip_seed),
        work.development: split_seeds("development", work.clips),
    }
    (work.root / "clips").mkdir(parents=True, exist_ok=True)
    with (work.root / "clips" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for folder, seeds in clips.items():
            if not (folder / TABLE).exists():
                write_dataset(folder, seeds)


def _measure(config: TrainConfig, run: "RunDirectory") -> Figures:
    from benchmarks.accuracy import accuracy_of
    from cacovid.data.table import read_questions
    from cacovid.methods.registry import POLICY
    from cacovid.policy.base import CompressionPolicy
    from cluster.training.price import price_of_run

    policy = CompressionPolicy.from_pretrained(run.policy)
    result = accuracy_of(policy, read_questions(config.evaluation.data), config)
    price = price_of_run(run.folder)
    return Figures(
        settings=config.model_dump_json(),
        answers=sum(int(row["combinations"]) for row in run.rows()),
        full_accuracy=result.full_accuracy,
        accuracy={ratio: result.row(POLICY, ratio).accuracy for ratio in config.evaluation.retentions},
        awareness=result.question_awareness_auc,
        reached=None if price is None else price.combinations,
    )


def main() -> None:
    """Work of ``argv``, in a process of its own."""
    try:
        complete = train_and_measure(Work.model_validate_json(sys.argv[1]))
    except UserError as error:
        sys.exit(str(error))
    sys.exit(0 if complete else INTERRUPTED)


if __name__ == "__main__":
    main()
