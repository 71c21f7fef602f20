"""The price of training: combinations that the frozen model answered until the policy was good enough.

It is told from the rows of ``metrics.jsonl`` alone, so a resumed run and one that went back to a checkpoint tell the
same. What a restart did twice counts once: it is the price of the recipe, not of the accidents.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from cacovid.config import EvaluationConfig
from cacovid.config_files import load_config
from cluster.training.best_checkpoint import PREFIX
from cluster.training.run_directory import RunDirectory


class Price(BaseModel):
    """What a run has paid, and what it took until the target was first met on ``evaluation.data``."""

    model_config = ConfigDict(frozen=True)

    accuracy: float  # the target, relative to all tokens
    retention: float  # at which it holds
    scored: int  # combinations so far
    combinations: int | None = None  # until the target was met; None: not yet
    step: int | None = None  # finished steps by then

    @classmethod
    def of(cls, rows: Sequence[Mapping[str, Any]], target: EvaluationConfig) -> Self | None:
        """That of a run with these ``rows``; None where none of them was evaluated at the target's retention."""
        share, full = f"{PREFIX}accuracy_{target.target_retention:g}", f"{PREFIX}full_accuracy"
        if not any(share in row for row in rows):
            return None
        scored = [int(total) for total in accumulate(row["combinations"] for row in rows)]
        known = cls(accuracy=target.target_accuracy, retention=target.target_retention, scored=scored[-1])
        for row, combinations in zip(rows, scored, strict=True):
            if share in row and row[full] > 0 and row[share] >= target.target_accuracy * row[full]:
                return known.model_copy(update={"combinations": combinations, "step": int(row["step"]) + 1})
        return known

    @property
    def name(self) -> str:
        """What is counted."""
        return f"combinations until {100 * self.accuracy:g} % at {100 * self.retention:g} %"

    @property
    def value(self) -> str:
        """How many, in words."""
        if self.combinations is None:
            return f"not reached in {self.scored:,}"
        return f"{self.combinations:,} (step {self.step})"


def price_of_run(folder: Path) -> Price | None:
    """That of the run in ``folder``; None where it was never evaluated."""
    run = RunDirectory(folder)
    return Price.of(run.rows(), load_config(run.config_file).evaluation)


def price_of_policy(folder: Path) -> Price | None:
    """That of the run whose policy lies in ``folder``; None for a policy by itself, or one never evaluated."""
    run = RunDirectory(folder.parent)
    return price_of_run(run.folder) if folder in (run.policy, run.best_policy) and run.metrics.is_file() else None
