"""The checkpoint whose policy evaluates best, among those that were kept for it.

It is told from the rows of ``metrics.jsonl`` and from which checkpoints hold a ``policy/``: ``checkpoints/best.json``
and ``best_policy/`` say the same for others, and are made again where a kill came before them. Scores are compared over
the whole run, so ``evaluation.data`` and ``evaluation.clips`` should stay as they are.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cacovid.atomic import writing
from cluster.training.run_directory import RunDirectory

PREFIX = "evaluation/"  # of names in a row
POLICY = "policy"  # in a checkpoint that was the best so far
MEASURE = "mean of accuracy_R over evaluation.retentions, on evaluation.data"


@dataclass(frozen=True)
class Best:
    """A checkpoint after ``step`` steps, and what its policy is worth."""

    step: int
    score: float


class BestCheckpoint:
    """Finds, keeps and shows the best checkpoint of a run."""

    def __init__(self, run: RunDirectory, retentions: Sequence[float]) -> None:
        self._run = run
        self._names = [f"{PREFIX}accuracy_{retention:g}" for retention in retentions]

    def score(self, row: Mapping[str, Any]) -> float | None:
        """Of the policy after a row's step; None if it was not evaluated at these retentions."""
        if not all(name in row for name in self._names):
            return None
        return float(sum(row[name] for name in self._names)) / len(self._names)

    def find(self) -> Best | None:
        """The best of the checkpoints that are there; of equal ones the first."""
        found = [
            Best(step, score)
            for row in self._run.rows()
            if (score := self.score(row)) is not None
            and (self._run.checkpoint(step := int(row["step"]) + 1) / POLICY).is_dir()
        ]
        return max(found, key=lambda best: best.score, default=None)

    def would_be(self, step: int) -> bool:
        """Whether a checkpoint after ``step`` steps, the last ones done, would be better than all that are there."""
        rows = self._run.rows()
        score = self.score(rows[-1]) if rows and int(rows[-1]["step"]) + 1 == step else None
        best = self.find()
        return score is not None and (best is None or score > best.score)

    def show(self) -> None:
        """Bring ``best.json`` and ``best_policy`` up to date."""
        best = self.find()
        if best is None:  # none yet, or what was it is lost
            self._run.best.unlink(missing_ok=True)
            shutil.rmtree(self._run.best_policy, ignore_errors=True)
            return
        if saved_step(self._run.best) == best.step and self._run.best_policy.exists():
            return
        part = self._run.best_policy.with_name(f"{self._run.best_policy.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(self._run.checkpoint(best.step) / POLICY, part)
        shutil.rmtree(self._run.best_policy, ignore_errors=True)
        os.replace(part, self._run.best_policy)
        with writing(self._run.best) as file:  # last: it says that the policy is there
            file.write_text(json.dumps({"step": best.step, "score": best.score, "measure": MEASURE}) + "\n")


def saved_step(path: Path) -> int | None:
    """The step that a ``best.json`` names; None where there is none."""
    return int(json.loads(path.read_text())["step"]) if path.exists() else None
