"""What ``cacovid evaluate`` prints of its result; everything is in the reports."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from cacovid.evaluation.result import EvaluationResult, Row

FIGURE, PAIR = len("100.0"), len("100/100")  # seven retentions fit 80 columns so


def print_result(result: "EvaluationResult", console: "Console") -> None:
    """Accuracy of all methods, then how sure it is that a method is better than its best rival, and what it costs."""
    from cacovid.evaluation.reports.markdown import undefined_line

    console.print(_accuracy(result))
    for cell in result.undefined:
        console.print(undefined_line(cell), highlight=False, markup=False, soft_wrap=True)
    if any(row.versus is not None for row in result.rows):
        console.print(_versus(result))
    console.print(_saved(result))
    if result.swapped:
        console.print(_swapped(result))


def _accuracy(result: "EvaluationResult") -> "Table":
    table = _table(
        f"{result.model}: accuracy in % on {result.questions} questions, {result.clips} clips "
        f"(all tokens {100 * result.full_accuracy:.1f})",
        "± one standard error, clustered by video",
        result.retentions,
    )
    table.add_column("AUC", justify="right", min_width=FIGURE)

    def area(method: str) -> str:
        found = result.question_awareness.get(method)
        return "-" if found is None else f"{found:.3f}"

    _fill(table, result, lambda row: f"{100 * row.accuracy:.1f} ±{100 * row.stderr:.1f}", area)
    return table


def _versus(result: "EvaluationResult") -> "Table":
    """Of the policies; where there is none, of all methods."""
    from rich.markup import escape

    from cacovid.evaluation.reports.markdown import p_value
    from cacovid.methods.registry import BASELINES

    policies = [row for row in result.rows if row.method not in BASELINES]
    table = _table(
        "points of accuracy against the best other training-free method",
        "± one standard error, clustered by video; the larger p of McNemar's test and of the bootstrap by video",
    )
    table.add_column("tokens", justify="right")
    table.add_column("points", justify="right")
    table.add_column("against", overflow="fold")
    table.add_column("p", justify="right")
    for row in policies or result.rows:
        if row.versus is not None:
            points = f"{100 * row.versus.difference:+.1f} ±{100 * row.versus.stderr:.1f}"
            p = p_value(max(row.versus.mcnemar_p, row.versus.bootstrap_p))
            table.add_row(escape(row.method), f"{100 * row.retention:g} %", points, row.versus.rival, p)
    return table


def _saved(result: "EvaluationResult") -> "Table":
    """Shares of the full model, and times."""

    def show(row: "Row") -> str:
        share = "-" if row.share_of_full is None else f"{100 * row.share_of_full:.0f}"
        figures = f"{share}/{100 * row.agreement:.0f}\n{_short(100 * row.input_share)}/{_short(100 * row.mean_share)}"
        times = result.times_of(row.method, row.retention)
        if times is None or times.first_token_ms is None or times.first_token_with_tower_ms is None:
            return figures
        return f"{figures}\n{_short(times.first_token_ms)}/{_short(times.first_token_with_tower_ms)}"

    table = _table(
        "accuracy/equal answers in % of all tokens'; tokens in %: input/average over layers; "
        "ms to the first token: without/with the tower",
        "compressing, prefill and memory apart: results.md, times.json",
        result.retentions,
        width=PAIR,
    )
    _fill(table, result, show)
    return table


def _short(figure: float) -> str:
    """No decimals from 10 on: a pair of these takes little room."""
    return f"{figure:.1f}" if figure < 9.95 else f"{figure:.0f}"


def _swapped(result: "EvaluationResult") -> "Table":
    found = {(each.method, each.retention): each for each in result.swapped}

    def show(row: "Row") -> str:
        each = found.get((row.method, row.retention))
        return "-" if each is None else f"{100 * each.accuracy:.1f}\n({100 * each.change:+.1f})"

    table = _table(
        "control: accuracy in % from tokens kept for another question about the clip",
        "in brackets: change against the method's own tokens, on the same questions",
        result.retentions,
        width=PAIR,
    )
    _fill(table, result, show)
    return table


def _table(title: str, caption: str, retentions: Sequence[float] = (), width: int = FIGURE) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), caption=caption, box=SIMPLE_HEAD, padding=0)
    table.add_column("method", no_wrap=True)
    for retention in retentions:
        table.add_column(f"{100 * retention:g} %", justify="right", overflow="fold", min_width=width)
    return table


def _fill(
    table: "Table",
    result: "EvaluationResult",
    show: "Callable[[Row], str]",
    last: Callable[[str], str] | None = None,
) -> None:
    from rich.markup import escape

    from cacovid.evaluation.reports.markdown import UNDEFINED
    from cacovid.evaluation.result import Row

    for method in result.methods:
        cells = [result.cell(method, retention) for retention in result.retentions]
        shown = [show(cell) if isinstance(cell, Row) else UNDEFINED for cell in cells]
        table.add_row(escape(method), *shown, *([] if last is None else [last(method)]))
