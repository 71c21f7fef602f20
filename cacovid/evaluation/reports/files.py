"""An evaluation as results.json, Markdown and a plot."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from cacovid.atomic import writing
from cacovid.evaluation.reports.plot import plot_accuracy
from cacovid.evaluation.result import EvaluationResult, Row, Undefined

RESULTS, TABLE, PLOT = "results.json", "results.md", "results.png"
UNDEFINED = "n. d."  # in the place of a figure that a method's definition does not cover


def write_report(result: EvaluationResult, folder: Path) -> dict[str, Path]:
    """Write all three files into ``folder``; returns their paths by name. Unknown values are null in results.json."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in (RESULTS, TABLE, PLOT)}
    with writing(paths[RESULTS]) as part:
        part.write_text(json.dumps(asdict(result), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    with writing(paths[TABLE]) as part:
        part.write_text(as_markdown(result), encoding="utf-8")
    plot_accuracy(result, paths[PLOT])
    return paths


def as_markdown(result: EvaluationResult) -> str:
    """Accuracy and evidence recall by method and retention, in percent."""
    lines = [
        f"# {result.model}: {result.questions} questions on {result.clips} clips",
        "",
        f"All video tokens: {_percent(result.full_accuracy, result.full_stderr)} % right. Seed {result.seed}. "
        f"Skipped items: {result.skipped}. Standard errors are clustered by video.",
        "",
        f"## Accuracy in % (± one standard error, n = {result.questions}) by share of video tokens kept",
        "",
        *_matrix(result, lambda row: _percent(row.accuracy, row.stderr), awareness=True),
    ]
    if any(row.evidence_recall is not None for row in result.rows):
        lines += ["", "## Evidence recall in %: kept share of the tokens that show the asked object", ""]
        lines += _matrix(result, lambda row: "-" if row.evidence_recall is None else f"{100 * row.evidence_recall:.1f}")
    if result.full_accuracy > 0:
        lines += ["", "## Accuracy relative to all tokens, in %", ""]
        lines += _matrix(result, lambda row: f"{100 * row.accuracy / result.full_accuracy:.1f}")
    lines += [
        "",
        "## Tokens in % of all video tokens: at the LLM's input / as average over its layers; ms to compress",
        "",
    ]
    lines += _matrix(
        result, lambda row: f"{100 * row.input_share:.1f} / {100 * row.mean_share:.1f}; {row.compress_ms:.1f}"
    )
    if result.undefined:
        lines += ["", f"{UNDEFINED}: not defined.", "", *map(undefined_line, result.undefined)]
    if result.question_awareness:
        lines += ["", "AUC: the asked object's token scores against the other objects' (0.5: blind to the question)."]
    return "\n".join(lines) + "\n"


def undefined_line(cell: Undefined) -> str:
    """Why a row is not there, as a list's line."""
    return f"- {cell.method} at {100 * cell.retention:g} %: {cell.reason} ({cell.questions} questions)"


def _matrix(result: EvaluationResult, show: Callable[[Row], str], *, awareness: bool = False) -> list[str]:
    """Rows are methods, columns ratios; with ``awareness`` the AUC as last column."""
    with_auc = awareness and bool(result.question_awareness)
    heads = ["method", *(f"{100 * retention:g} %" for retention in result.retentions)] + ["AUC"] * with_auc
    lines = [f"| {' | '.join(heads)} |", f"| --- |{' ---: |' * (len(heads) - 1)}"]
    for method in result.methods:
        found = [result.cell(method, retention) for retention in result.retentions]
        cells = [show(cell) if isinstance(cell, Row) else UNDEFINED for cell in found]
        if with_auc:
            area = result.question_awareness.get(method)
            cells.append("-" if area is None else f"{area:.3f}")
        lines.append(f"| {' | '.join([method, *cells])} |")
    return lines


def _percent(share: float, stderr: float) -> str:
    return f"{100 * share:.1f} ± {100 * stderr:.1f}"
