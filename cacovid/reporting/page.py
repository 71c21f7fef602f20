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
class _Line:
    """A method in the table of results."""

    method: str
    cells: Sequence[Row | None]
    awareness: float | None


@dataclass(frozen=True)
class _Evaluation:
    """An evaluation as the template takes it."""

    name: str
    results: Results
    charts: Sequence[Chart]
    lines: Sequence[_Line]
    best: Sequence[float]  # accuracy at each ratio, of all methods but the oracle
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
    environment.filters |= {"percent": _percent, "p": _p_value, "picture": picture_uri, "number": _number}
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
    lines = [
        _Line(method, [results.row(method, ratio) for ratio in results.retentions], area)
        for method in results.methods
        for area in [results.question_awareness.get(method)]
    ]
    best = [
        max((row.accuracy for line in lines if (row := line.cells[place]) and line.method != "oracle"), default=0.0)
        for place in range(len(results.retentions))
    ]
    return _Evaluation(evaluated.name, results, results_charts(results), lines, best, evaluated, worst)


def _environment() -> dict[str, str]:
    """What made the report; nothing tells whose machine that was."""
    return {
        "Python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "system": f"{platform.system()} {platform.machine()}",
    }


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _p_value(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _number(value: float | None) -> str:
    """Three digits; a dash for what is not known."""
    return "-" if value is None else f"{value:.3g}"
