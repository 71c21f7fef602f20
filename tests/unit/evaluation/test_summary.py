"""Rows summed up, against figures worked by hand."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest

from cacovid.errors import UserError
from cacovid.evaluation.reports.markdown import as_markdown
from cacovid.evaluation.result import EvaluationResult
from cacovid.evaluation.rows import FULL, QuestionRow
from cacovid.evaluation.summary import Ran, summed_up
from cacovid.records import VideoQuestion

ITEMS = [
    VideoQuestion(
        f"q{number}",
        f"v{number // 2}",
        f"question {number}?",
        ("red", "blue"),
        "A",
        "multiple choice",
        "made",
        duration=(30.0, 90.0, None)[number // 2],
        group=("short", "long", "")[number // 2],
    )
    for number in range(6)
]
METHODS = ["ours", "divprune", "uniform", "random", "fastv-behind", "oracle"]
ANSWERS = {  # the full model says A, A, A, A, B, A
    FULL: "AAAABA",
    "ours": "AABABA",
    "divprune": "ABABBA",
    "uniform": "ABBBAB",
    "random": "AABBBB",
    "fastv-behind": "AAAAAA",
    "oracle": "AAAAAA",
}


def row(number: int, method: str, retention: float = 0.1, **values: object) -> QuestionRow:
    answer = ANSWERS[method][number]
    share = 1.0 if method == FULL else 0.3 if method == "fastv-behind" else 0.1
    item = ITEMS[number]
    known = QuestionRow(
        item.id, item.video, method, retention, float(answer == "A"), answer, None, None, share, share, None
    )
    return replace(known, **values)


def table() -> list[QuestionRow]:
    full = [row(number, FULL, 1.0) for number in range(6)]
    return full + [row(number, method) for method in METHODS for number in range(6)]


def summed(rows: Sequence[QuestionRow], methods: Sequence[str] = METHODS) -> EvaluationResult:
    return summed_up(rows, Ran("m", ITEMS, methods, ["ours"], (0.1,), 0), 1)


def test_accuracy_agreement_and_share_of_the_full_model() -> None:
    result = summed(table())
    assert (result.questions, result.clips, result.skipped) == (6, 3, 1)
    assert result.full_accuracy == pytest.approx(5 / 6)
    ours = result.row("ours", 0.1)
    assert ours.accuracy == pytest.approx(4 / 6)
    assert ours.share_of_full == pytest.approx(4 / 5)
    assert ours.agreement == pytest.approx(5 / 6)
    assert result.row("divprune", 0.1).agreement == pytest.approx(4 / 6)


def test_the_rival_keeps_to_the_budget_and_does_not_know_the_place_of_the_answer() -> None:
    """DivPrune, not the oracle and not what spends three times the tokens. By video it gains 1, 0 and 0 of 2."""
    versus = summed(table()).row("ours", 0.1).versus
    assert versus is not None
    assert versus.rival == "divprune"
    assert versus.difference == pytest.approx(1 / 6)
    residuals = [1 - 2 / 6, 0 - 2 / 6, 0 - 2 / 6]
    assert versus.stderr == pytest.approx(math.sqrt(sum(each**2 for each in residuals)) / 6)
    assert versus.mcnemar_p == 1.0  # 2 better, 1 worse
    of_divprune = summed(table()).row("divprune", 0.1).versus
    assert of_divprune is not None
    assert of_divprune.rival == "uniform"  # of two equally good ones the first


def test_the_order_of_rows_does_not_matter() -> None:
    assert summed(table()[::-1]) == summed(table())


def test_slices_by_columns_and_by_what_random_tokens_lead_to() -> None:
    slices = {(each.by, each.value, each.method): each for each in summed(table()).slices}
    assert {(by, value) for by, value, _ in slices} == {
        ("duration", "up to 1 min"),
        ("duration", "1 to 10 min"),
        ("group", "short"),
        ("group", "long"),
        ("random", "right"),
        ("random", "wrong"),
    }
    assert slices["group", "long", "ours"].accuracy == 0.5
    assert (slices["group", "short", FULL].n, slices["group", "short", FULL].accuracy) == (2, 1.0)
    assert (slices["random", "right", "ours"].accuracy, slices["random", "right", "ours"].n) == (1.0, 2)
    assert (slices["random", "wrong", "ours"].accuracy, slices["random", "wrong", "ours"].n) == (0.5, 4)
    assert slices["random", "right", "random"].accuracy == 1.0


def test_the_swapped_control_is_compared_on_the_questions_that_have_one() -> None:
    rows = [
        row(number, "ours", swapped_reward=None if number > 3 else float(number == 0))
        if each.method == "ours"
        else each
        for each in table()
        for number in [int(each.question[1])]
    ]
    (found,) = summed(rows).swapped
    assert (found.method, found.n, found.accuracy) == ("ours", 4, 0.25)
    assert found.change == pytest.approx(0.25 - 0.75)
    assert found.change_stderr == 0.0  # one fewer on either video


def test_a_row_that_is_not_defined_everywhere_is_none() -> None:
    rows = [
        QuestionRow(each.question, each.video, "divprune", 0.1, None, None, "too few", *[None] * 4)
        if (each.method, each.question) == ("divprune", "q3")
        else each
        for each in table()
    ]
    result = summed(rows)
    assert [(each.method, each.reason, each.questions) for each in result.undefined] == [("divprune", "too few", 1)]
    versus = result.row("ours", 0.1).versus
    assert versus is not None
    assert versus.rival == "uniform"


def test_times_are_medians_of_the_questions_that_were_timed() -> None:
    rows = table()
    for number, prefill in ((0, 5.0), (2, 7.0), (4, 30.0)):
        at = next(place for place, each in enumerate(rows) if (each.method, each.question) == ("ours", f"q{number}"))
        rows[at] = row(number, "ours", compress_ms=2.0, prefill_ms=prefill, tower_ms=10.0, memory_bytes=7, device="CPU")
    result = summed(rows)
    times = result.times_of("ours", 0.1)
    assert times is not None
    assert (times.compress_ms, times.prefill_ms, times.first_token_ms, times.memory_bytes) == (2.0, 7.0, 9.0, 7)
    assert times.first_token_with_tower_ms == 19.0
    assert times.device == "CPU"
    text = as_markdown(result)
    assert "| 10 % | ours | 2.0 | 7.0 | 9.0 | 19.0 | 0 |" in text
    assert "| 10 % | ours | divprune | +16.7 ± 13.6 | 1.000 | " in text
    assert "## group: long (2 questions, all tokens 100.0 ± 0.0): accuracy in %" in text
    assert "lead to a wrong answer: accuracy in % (questions)" in text


def test_nothing_at_all_is_a_mistake() -> None:
    with pytest.raises(UserError, match="none of the 6 questions"):
        summed([])
