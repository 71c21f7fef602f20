"""The plots of an evaluation: accuracy and evidence recall over the share of tokens kept, accuracy over time."""

from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator, PercentFormatter

from cacovid.atomic import writing
from cacovid.evaluation.result import EvaluationResult, Row, Times
from cacovid.evaluation.rows import FULL
from cacovid.methods.registry import UNTRAINED

# Okabe and Ito's colours, which colour-blind readers can tell apart.
TRAINED_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000")
GREY = "#6f6f6f"
Figures = Callable[[Row], float | None]


class Style(NamedTuple):
    """How one method's line looks."""

    colour: str
    marker: str
    line: str
    width: float


BASELINE_STYLES = {
    UNTRAINED: Style("#9a9a9a", "v", "-", 1.2),
    "divprune": Style("#E69F00", "s", "--", 1.4),
    "vidcom2": Style("#7b3f9e", "p", "--", 1.4),
    "evs": Style("#b3365f", "h", "--", 1.4),
    "visionzip": Style("#2f7f7a", "<", "--", 1.4),
    "flashvid": Style("#c2571a", "8", "--", 1.4),
    "holitom": Style("#5a7d1f", ">", "--", 1.4),
    "prunevid": Style("#3a5fcd", "d", "--", 1.4),
    "framefusion": Style("#a0522d", "*", "-.", 1.4),
    "framefusion-behind": Style("#cf9a7a", "*", ":", 1.2),
    "fastv": Style("#4d4d99", "X", "-.", 1.4),
    "fastv-behind": Style("#9c9ccf", "X", ":", 1.2),
    "text-cosine": Style("#56B4E9", "D", "--", 1.4),
    "fewer-frames": Style("#7f7f00", "1", "--", 1.2),
    "lower-resolution": Style("#b58900", "2", "--", 1.2),
    "uniform": Style("#8c6d46", "^", "--", 1.4),
    "random": Style("#b7a7c9", "P", "--", 1.4),
    "oracle": Style("#444444", "x", ":", 1.4),
}


def plot_accuracy(result: EvaluationResult, path: Path) -> None:
    """Write a PNG; the second panel appears where evidence is known."""
    with_recall = any(row.evidence_recall is not None for row in result.rows)
    figure = Figure(figsize=(10.4 if with_recall else 6.4, 4.6), dpi=200, layout="constrained")
    axes = figure.subplots(1, 2 if with_recall else 1, squeeze=False)[0]
    _accuracy_panel(axes[0], result)
    if with_recall:
        _recall_panel(axes[1], result)
    for each in axes:
        _retention_axis(each, result)
    _save(figure, axes[0], result, path, 5 if with_recall else 3)


def plot_time(result: EvaluationResult, path: Path) -> None:
    """Write a PNG of accuracy over the time to the first token, without and with the vision tower."""
    figure = Figure(figsize=(10.4, 4.6), dpi=200, layout="constrained")
    axes = figure.subplots(1, 2)
    _time_panel(axes[0], result, lambda times: times.first_token_ms)
    _time_panel(axes[1], result, lambda times: times.first_token_with_tower_ms)
    axes[0].set_xlabel("ms to the first token: compressing and prefill")
    axes[1].set_xlabel("ms to the first token, vision tower included")
    _save(figure, axes[0], result, path, 5)


def _save(figure: Figure, axes: Any, result: EvaluationResult, path: Path, columns: int) -> None:  # noqa: ANN401
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), columns), frameon=False, fontsize=9
    )
    title = f"{result.model}: {result.questions} questions on {result.clips} clips"
    figure.suptitle(title, fontsize=11, fontweight="bold")
    with writing(path) as part:
        figure.savefig(part, format="png")


def _time_panel(axes: Any, result: EvaluationResult, time: Callable[[Times], float | None]) -> None:  # noqa: ANN401
    _full_line(axes, result)
    full = result.times_of(FULL, 1.0)
    when = None if full is None else time(full)
    if when is not None:
        axes.plot([when], [result.full_accuracy], marker="o", markersize=6, color=GREY, linestyle="", zorder=4)

    def place(row: Row) -> float | None:
        times = result.times_of(row.method, row.retention)
        return None if times is None else time(times)

    _lines(axes, result, place, lambda row: row.accuracy, errors=True)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def _accuracy_panel(axes: Any, result: EvaluationResult) -> None:  # noqa: ANN401 - matplotlib has no types here
    _full_line(axes, result)
    _lines(axes, result, lambda row: row.mean_share, lambda row: row.accuracy, errors=True)


def _full_line(axes: Any, result: EvaluationResult) -> None:  # noqa: ANN401
    full = result.full_accuracy
    axes.axhspan(full - result.full_stderr, full + result.full_stderr, color=GREY, alpha=0.12, linewidth=0)
    axes.axhline(full, color=GREY, linewidth=1.1, linestyle=(0, (5, 3)), label=f"all tokens ({100 * full:.1f} %)")
    axes.set_ylabel("accuracy (± standard error, by video)")


def _recall_panel(axes: Any, result: EvaluationResult) -> None:  # noqa: ANN401
    axes.set_ylabel("evidence recall")
    _lines(axes, result, lambda row: row.mean_share, lambda row: row.evidence_recall, errors=False)


def _lines(axes: Any, result: EvaluationResult, place: Figures, height: Figures, *, errors: bool) -> None:  # noqa: ANN401
    """A line for each method through the rows whose ``place`` and ``height`` are known, on the finished axes."""
    for method, style in _styled(result):
        rows = [row for row in result.rows if row.method == method and None not in (place(row), height(row))]
        if not rows:
            continue
        axes.errorbar(
            [place(row) for row in rows],
            [height(row) for row in rows],
            yerr=[row.stderr for row in rows] if errors else None,
            label=method,
            color=style.colour,
            marker=style.marker,
            linestyle=style.line,
            linewidth=style.width,
            markersize=5 if style.width > 2 else 4,
            capsize=2,
            elinewidth=0.9,
            zorder=3 if style.width > 2 else 2,
        )
    _finish(axes)


def _styled(result: EvaluationResult) -> list[tuple[str, Style]]:
    """A baseline's own style; trained policies, and baselines without one, take the next colour."""
    others = [method for method in result.methods if method not in BASELINE_STYLES]
    colours = dict(zip(others, cycle(TRAINED_COLOURS), strict=False))
    return [
        (method, Style(colours[method], "o", "-", 2.2) if method in colours else BASELINE_STYLES[method])
        for method in result.methods
    ]


def _retention_axis(axes: Any, result: EvaluationResult) -> None:  # noqa: ANN401
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_spaced(result.retentions)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    axes.set_xlabel("video tokens kept, average over the LLM's layers")


def _finish(axes: Any) -> None:  # noqa: ANN401
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_ylim(top=1.03)
    axes.tick_params(labelsize=9)
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _spaced(retentions: list[float]) -> list[float]:
    """The ratios whose labels do not run into each other on a log axis with room for about 9."""
    ordered = sorted(retentions)
    gap = (ordered[-1] / ordered[0]) ** (1 / 9)
    shown: list[float] = []
    for retention in ordered:
        if not shown or retention >= gap * shown[-1]:
            shown.append(retention)
    return shown
