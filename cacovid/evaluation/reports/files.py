"""An evaluation as results.json, times.json, Markdown and plots.

``results.json`` holds what is the same whenever and wherever the evaluation runs; times and memory are apart.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from cacovid.atomic import writing
from cacovid.evaluation.reports.markdown import as_markdown
from cacovid.evaluation.reports.plot import plot_accuracy, plot_time
from cacovid.evaluation.result import EvaluationResult
from cacovid.evaluation.timing import MEMORY

RESULTS, TIMES, TABLE = "results.json", "times.json", "results.md"
PLOT, TIME_PLOT = "results.png", "accuracy-over-time.png"


def write_report(result: EvaluationResult, folder: Path) -> dict[str, Path]:
    """Write all files into ``folder``; returns their paths by name. Unknown values are null in the JSON files."""
    folder.mkdir(parents=True, exist_ok=True)
    content = asdict(result)
    times = {"memory_bytes": MEMORY, "rows": content.pop("times")}
    texts = {RESULTS: _json(content), TIMES: _json(times), TABLE: as_markdown(result)}
    for name, text in texts.items():
        with writing(folder / name) as part:
            part.write_text(text, encoding="utf-8")
    plot_accuracy(result, folder / PLOT)
    names = [*texts, PLOT]
    if any(each.first_token_ms is not None for each in result.times):
        plot_time(result, folder / TIME_PLOT)
        names.append(TIME_PLOT)
    return {name: folder / name for name in names}


def _json(content: Mapping[str, object]) -> str:
    return json.dumps(content, indent=2, allow_nan=False) + "\n"
