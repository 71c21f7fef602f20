"""Line charts as SVG images that follow the reader's light or dark scheme.

matplotlib draws them; its colours then become CSS variables with a value for each scheme. As an image a chart may not
load anything, and needs no name of its own on the page.
"""

import base64
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from itertools import cycle
from typing import Any

from matplotlib import rc_context
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from cacovid.evaluation.reports.plot import BASELINE_STYLES, TRAINED_COLOURS
from cacovid.reporting.records import RunRecord
from cacovid.reporting.results import Results, Row

# Colours that nothing else has, so that they can be found again in the SVG.
_INK, _SOFT, _GRID = "#0a0b0c", "#6a6b6c", "#dadbdc"
_SCHEMES = {_INK: ("#22252b", "#e8e9ec"), _SOFT: ("#666d78", "#a4abb6"), _GRID: ("#dfe2e7", "#3a3f48")}
_COLOUR = re.compile(r"#[0-9a-f]{6}\b")
_ACCURACY = re.compile(r"evaluation/(?:(?P<kind>.+)_)?accuracy_(?P<retention>[\d.e-]+)")
_PROLOGUE = re.compile(r"^.*?(?=<svg)", re.DOTALL)
PANELS: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("Reward", {"top_k_reward": "the policy's own choice", "reward": "all sampled combinations"}),
    ("Loss of an optimiser step", {"loss": "loss"}),
    ("Combinations a second", {"combinations_per_second": "combinations a second"}),
    ("Seconds of a step", {"wait_seconds": "waiting for rollouts", "learn_seconds": "learning"}),
)


@dataclass(frozen=True)
class Key:
    """One line of a chart."""

    label: str
    light: str
    dark: str
    dash: str  # solid, dashed or dotted


@dataclass(frozen=True)
class Chart:
    """A chart and what its lines are."""

    title: str
    image: str  # data URI
    keys: Sequence[Key]


def run_charts(runs: Sequence[RunRecord]) -> list[Chart]:
    """Curves of all runs over their steps, side by side; those alone of which there are figures."""
    panels = [*PANELS, *_accuracy_panels({name for run in runs for row in run.rows for name in row})]
    return [chart for title, names in panels if (chart := _run_chart(title, names, runs)) is not None]


def _accuracy_panels(names: Iterable[str]) -> list[tuple[str, dict[str, str]]]:
    """Accuracy while training by retention, and for each retention by question type where the data has types."""
    by_retention: dict[str, str] = {}
    by_type: dict[str, dict[str, str]] = defaultdict(dict)
    for name in sorted(names):
        if found := _ACCURACY.fullmatch(name):
            kind, kept = found["kind"], f"{100 * float(found['retention']):g} % kept"
            if kind and float(found["retention"]) < 1:  # all tokens are the same at every step
                by_type[f"Accuracy by question type, {kept}"][name] = kind
            elif not kind:
                by_retention[name] = kept
    return [(title, lines) for title, lines in [("Accuracy while training", by_retention), *by_type.items()] if lines]


def _run_chart(title: str, names: Mapping[str, str], runs: Sequence[RunRecord]) -> Chart | None:
    lines = [
        (f"{run.name}: {label}" if len(runs) > 1 else label, places, values)
        for run in runs
        for name, label in names.items()
        for places, values in [_series(run.rows, name)]
        if values
    ]
    if not lines:
        return None
    keys = [_key(label, colour) for (label, _, _), colour in zip(lines, cycle(TRAINED_COLOURS), strict=False)]
    with _chart() as (figure, axes):
        for (_, places, values), key in zip(lines, keys, strict=True):
            axes.plot(places, values, color=key.light, linewidth=0.8, alpha=0.3)
            axes.plot(places, trailing_mean(values), color=key.light, linewidth=2)
        axes.set_xlabel("training step")
        return Chart(title, _data_uri(figure, keys), keys)


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    found = [(row["step"] + 1, row[name]) for row in rows if row.get(name) is not None]
    return [step for step, _ in found], [value for _, value in found]


def results_charts(results: Results) -> list[Chart]:
    """Accuracy, and evidence recall where it is known, over the tokens kept."""
    charts = [_results_chart("Accuracy", results, lambda row: row.accuracy, errors=True)]
    if any(row.evidence_recall is not None for row in results.rows):
        charts.append(_results_chart("Evidence recall", results, lambda row: row.evidence_recall, errors=False))
    return charts


def _results_chart(title: str, results: Results, height: Callable[[Row], float | None], *, errors: bool) -> Chart:
    drawn = {row.method for row in results.rows if height(row) is not None}
    keys = [key for key in _keys(results) if key.label in drawn]
    with _chart() as (figure, axes):
        for key in keys:
            rows = [row for row in results.rows if row.method == key.label and height(row) is not None]
            axes.errorbar(
                [row.mean_share for row in rows],
                [height(row) for row in rows],
                yerr=[row.stderr for row in rows] if errors else None,
                color=key.light,
                linestyle=key.dash,
                linewidth=2 if key.dash == "solid" else 1.3,
                marker="o",
                markersize=3.5,
                capsize=2,
                elinewidth=0.8,
            )
        if errors:
            axes.axhline(results.full_accuracy, color=_SOFT, linewidth=1, linestyle=(0, (6, 3)))
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(results.retentions))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xlabel("% of the video tokens, average over the LLM's layers")
        return Chart(title, _data_uri(figure, keys), keys)


def _keys(results: Results) -> Iterator[Key]:
    """A baseline's own colour, dashed; trained policies, and baselines without one, the next one, solid."""
    colours = cycle(TRAINED_COLOURS)
    dashes = {"--": "dashed", "-.": "dashed", ":": "dotted", "-": "solid"}
    for method in results.methods:
        style = BASELINE_STYLES.get(method)
        yield _key(method, next(colours)) if style is None else _key(method, style.colour, dashes[style.line])


def _key(label: str, colour: str, dash: str = "solid") -> Key:
    """On a dark ground a colour needs more light."""
    lighter = tuple(value + (1 - value) * 0.45 for value in to_rgb(colour))
    return Key(label, to_hex(colour), to_hex(lighter), dash)


@contextmanager
def _chart() -> Iterator[tuple[Figure, Any]]:
    look = {"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    with rc_context(look):
        figure = Figure(figsize=(5.6, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.grid(visible=True, color=_GRID, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(color=_GRID, labelcolor=_SOFT)
        axes.xaxis.label.set_color(_SOFT)
        for side, spine in axes.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(_GRID)
        yield figure, axes


def _data_uri(figure: Figure, keys: Sequence[Key]) -> str:
    """The figure as an SVG image whose colours depend on the scheme."""
    buffer = BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    schemes = {**_SCHEMES, **{key.light: (key.light, key.dark) for key in keys}}
    svg = _PROLOGUE.sub("", buffer.getvalue().decode())
    svg = _COLOUR.sub(lambda found: f"var(--c{found[0][1:]})" if found[0] in schemes else found[0], svg)
    light, dark = (
        "".join(f"--c{colour[1:]}:{values[place]};" for colour, values in schemes.items()) for place in (0, 1)
    )
    style = f"<style>svg{{{light}}}@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    opening = svg.index(">") + 1
    svg = svg[:opening] + style + svg[opening:]
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def trailing_mean(values: Sequence[float], window: int = 7) -> list[float]:
    """Trailing mean, so that the line never knows the future."""
    return [
        sum(part) / len(part) for end in range(len(values)) for part in [values[max(0, end + 1 - window) : end + 1]]
    ]
