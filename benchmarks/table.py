"""How benchmarks print: tables of one form, each under a title of its own line."""

from collections.abc import Callable, Mapping, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.timing import Spread


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print ``rows``: the first column names them, the others hold figures. Inside a table the title would break."""
    table = Table()
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(f"\n{title}", table, sep="\n", highlight=False)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as Markdown, without the title."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (columns, rule, *rows))


def show_ratios(title: str, unit: str, times: Mapping[str, Sequence[float]], figure: Callable[[float], float]) -> None:
    """Compare sides that took turns.

    Args:
        title: Of the table.
        unit: Of ``figure``.
        times: Seconds of each side in each round; ratios are to the first side's figure in the same round.
        figure: What is told of a side's seconds; its median over the rounds is shown.
    """
    first, base = next(iter(times.items()))
    rows = [
        (
            name,
            f"{Spread.of(map(figure, taken)).median:.0f}",
            str(Spread.of(figure(other) / figure(one) for one, other in zip(base, taken, strict=True))),
        )
        for name, taken in times.items()
    ]
    show(title, ("", unit, f"ratio to {first} (min - max)"), rows)
