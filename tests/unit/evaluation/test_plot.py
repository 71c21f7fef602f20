"""The lines of the accuracy plot."""

import pytest

from cacovid.evaluation.reports.plot import BASELINE_STYLES, _styled
from cacovid.evaluation.result import EvaluationResult, Row
from cacovid.methods.baselines.uniform import UniformTokens
from cacovid.methods.registry import BASELINES


def test_a_baseline_without_a_style_of_its_own_is_told_from_the_policies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BASELINES, "new", UniformTokens)
    rows = tuple(Row(method, 0.1, 0.5, 0.1, None, 4, 0.1, 0.1) for method in ("new", "first", "divprune", "second"))
    styles = dict(_styled(EvaluationResult("m", 2, 4, 0, 1.0, None, rows, 0.0, {}, 0)))
    assert styles["divprune"] == BASELINE_STYLES["divprune"]
    assert len({style.colour for style in styles.values()}) == 4


def test_every_baseline_has_a_style_that_no_other_has() -> None:
    assert set(BASELINE_STYLES) == {"untrained", *BASELINES}
    assert len({(style.colour, style.marker) for style in BASELINE_STYLES.values()}) == len(BASELINE_STYLES)
