"""The report's HTML: a template, its style and every picture in one file that loads nothing."""

import base64
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from cacovid.atomic import writing
from cacovid.evaluation.reports.markdown import p_value
from cacovid.reporting.charts import Chart, results_charts, run_charts
from cacovid.reporting.records import Gallery, RunRecord, Worst
from cacovid.reporting.results import Evaluated, Results, Row

PICTURE_WIDTH = 1400  # pixels, at most
SIGNIFICANT = 0.05
PACKAGES = ("cacovid", "torch", "transformers", "ray", "deepspeed", "numpy", "av", "pillow")


@dataclass(frozen=True, eq=False)
class Report:
    """All that a report shows. Anything may be missing."""

    title: str
    runs: Sequence[RunRecord] = ()
    evaluations: Sequence[tuple[Evaluated, Sequence[Worst]]] = ()
    galleries: Sequence[Gallery] = ()
    pictures: Mapping[str, Image.Image] | None = None  # that lie in a run's folder, by name


@dataclass(frozen=True)
class _Cell:
    """A row in the table of results."""

    row: Row
    best: bool  # of its column's, with no more tokens than the others
    more: bool  # tokens than its column's share, as average over the layers


@dataclass(frozen=True)
class _Line:
    """A method in the table of results."""

    method: str
    cells: Sequence[_Cell | None]
    awareness: float | None


@dataclass(frozen=True)
class _Evaluation:
    """An evaluation as the template takes it."""

    name: str
    results: Results
    charts: Sequence[Chart]
    lines: Sequence[_Line]
    evaluated: Evaluated
    worst: Sequence[Worst]

    @property
    def compared(self) -> bool:
        """Whether methods were compared with their best rival."""
        return any(row.versus is not None for row in self.results.rows)


def write_page(report: Report, path: Path) -> None:
    """Write the HTML file; its folder is made if absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as part:
        part.write_text(render(report), encoding="utf-8")


def render(report: Report) -> str:
    """The HTML. Everything that comes from files is escaped."""
    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": _percent, "p": p_value, "picture": picture_uri, "number": _number}
    return environment.get_template("report.html.jinja").render(
        report=report,
        charts=run_charts(report.runs),
        evaluations=[_evaluation(*each) for each in report.evaluations],
        environment=_environment(),
        significant=SIGNIFICANT,
    )


def picture_uri(image: Image.Image) -> str:
    """A picture as a data URI, not wider than a page."""
    shown = image.convert("RGB")
    if shown.width > PICTURE_WIDTH:
        shown = shown.resize((PICTURE_WIDTH, round(shown.height * PICTURE_WIDTH / shown.width)))
    buffer = BytesIO()
    shown.save(buffer, format="WEBP", quality=82)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _evaluation(evaluated: Evaluated, worst: Sequence[Worst]) -> _Evaluation:
    results = evaluated.results
    best = {ratio: _best(results, ratio) for ratio in results.retentions}
    lines = [
        _Line(
            method,
            [_cell(results.row(method, ratio), best[ratio]) for ratio in results.retentions],
            results.question_awareness.get(method),
        )
        for method in results.methods
    ]
    return _Evaluation(evaluated.name, results, results_charts(results), lines, evaluated, worst)


def _best(results: Results, ratio: float) -> float | None:
    """The highest accuracy of those that keep to the ratio and do not know the answer's place."""
    fair = [row for row in results.rows if row.retention == ratio and not _takes_more(row) and row.method != "oracle"]
    return max((row.accuracy for row in fair), default=None)


def _cell(row: Row | None, best: float | None) -> _Cell | None:
    if row is None:
        return None
    more = _takes_more(row)
    return _Cell(row, row.accuracy == best and not more and row.method != "oracle", more)


def _takes_more(row: Row) -> bool:
    """Some methods are defined by what is left behind an early layer: their average is larger."""
    return row.mean_share > 1.05 * row.retention


def _environment() -> dict[str, str]:
    """What made the report; nothing tells whose machine that was."""
    return {
        "Python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _number(value: float | None) -> str:
    """Three digits; a dash for what is not known."""
    return "-" if value is None else f"{value:.3g}"
