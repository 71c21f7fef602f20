"""The table of the ablations."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.ablations.variants import Variant
from benchmarks.ablations.work import Figures
from cacovid.config import EvaluationConfig


@dataclass(frozen=True)
class Summary:
    """A variant with the figures of its seeds that are known."""

    variant: Variant
    owner: str  # of the runs
    figures: Sequence[Figures]

    def cells(self, retentions: Sequence[float]) -> list[str]:
        """A line of the table."""
        name, group, figures = self.variant.name, self.variant.group, self.figures
        shares = [
            spread([100 * each.accuracy[retention] / each.full_accuracy for each in figures], "{:.1f}".format)
            for retention in retentions
        ]
        area = spread([each.awareness for each in figures if each.awareness is not None], "{:.3f}".format)
        answers = " / ".join(dict.fromkeys(f"{each.answers:,}" for each in figures))
        # A run's price holds for the selection that it was trained with.
        reached = [] if self.variant.measure else [each.reached for each in figures]
        price = " / ".join("-" if each is None else f"{each:,}" for each in reached)
        shown = name if self.owner == name else f"{name} ({self.owner})"
        return [shown, group, f"{len(figures)}", answers or "-", *shares, area, price or "-"]


def table(summaries: Sequence[Summary], target: EvaluationConfig) -> tuple[list[str], list[list[str]]]:
    """Heads and lines."""
    shares = [f"{100 * retention:g} %" for retention in target.retentions]
    price = f"{100 * target.target_accuracy:g} % at {100 * target.target_retention:g} % after"
    heads = ["variant (its runs)", "group", "seeds", "answers", *shares, "AUC", price]
    return heads, [each.cells(target.retentions) for each in summaries]


def spread(values: Iterable[float], show: Callable[[float], str]) -> str:
    """Mean ± sample standard deviation; of one value, that."""
    held = list(values)
    if not held:
        return "-"
    mean = show(statistics.mean(held))
    return mean if len(held) == 1 else f"{mean} ± {show(statistics.stdev(held))}"
