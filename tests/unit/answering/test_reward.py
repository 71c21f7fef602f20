import pytest

from cacovid.answering.reward import Number, parse_number, reward
from cacovid.errors import BadItem


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("17", Number(17, False)),
        ("12 + 5 = 17", Number(17, False)),
        ("1,234.50 m", Number(1234.5, True)),
        ("1,234,567", Number(1234567, False)),
        ("-3.5", Number(-3.5, True)),
        ("\N{MINUS SIGN}3", Number(-3, False)),
        ("about .5", Number(0.5, True)),
        ("2e3", Number(2000, False)),
        ("It has 4.", Number(4, False)),
        ("$12.00", Number(12, True)),
        ("none", None),
        ("1e999", None),
        ("v2.0", None),
        ("", None),
    ],
)
def test_parse_number(text, number):
    assert parse_number(text) == number


@pytest.mark.parametrize(
    ("prediction", "answer"),
    [
        ("<think>Not 4.</think><answer>5</answer>", "5"),
        ("<answer>4</answer> No: <answer>5</answer>", "5"),
        ("<ANSWER> 5", "5"),
    ],
)
def test_the_last_answer_tag_counts(prediction, answer):
    assert reward("numerical", prediction, answer) == 1


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("17", "17", 1),
        ("3.141", "3.14", 1),
        ("3.15", "3.14", 0),
        ("3.0", "3", 0),  # one with decimals, one without
        ("1,000", "1000", 1),
        ("<answer>5</answer> of 9", "5", 1),
        ("many", "5", 0),
    ],
)
def test_numerical(prediction, answer, expected):
    assert reward("numerical", prediction, answer) == expected


@pytest.mark.parametrize(
    ("prediction", "answer", "value"),
    [("90", "100", 0.9), ("110", "100", 0.9), ("-100", "100", 0), ("0", "0", 1), ("1", "0", 0), ("-9", "-10", 0.9)],
)
def test_regression_is_one_minus_the_relative_error(prediction, answer, value):
    assert reward("regression", prediction, answer) == pytest.approx(value)


@pytest.mark.parametrize(
    ("prediction", "value"),
    [("stop the red bus", 1), ("stop the blue bus", 0.75), ("stop the red", 0.75), ("go", 0), ("a b c d e f g h i", 0)],
)
def test_ocr_is_one_minus_the_word_error_rate(prediction, value):
    assert reward("OCR", prediction, "stop the red bus") == pytest.approx(value)


def test_free_form_is_the_mean_of_three_rouge_f_scores():
    assert reward("free-form", "the cat sat", "the cat sat") == pytest.approx(1)
    assert reward("free-form", "jumped twice", "jumping twice") == pytest.approx(1)  # word stems count
    # rouge-1: 2 of 3 words both ways; rouge-2: 1 of 2; rouge-L: 2 of 3
    assert reward("free-form", "the cat ran", "the cat sat") == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)


def test_a_prediction_without_any_word_for_rouge_is_unreadable():
    assert reward("free-form", "?!", "the cat sat") == 0.0


@pytest.mark.parametrize("problem_type", ["numerical", "regression", "OCR", "free-form"])
def test_an_empty_prediction_is_unreadable(problem_type):
    assert reward(problem_type, " ", "5") == 0.0


@pytest.mark.parametrize(
    ("problem_type", "answer"),
    [
        ("numerical", "some"),
        ("regression", ""),
        ("OCR", " "),
        ("free-form", ""),
        ("free-form", "\N{HIRAGANA LETTER A}!"),
    ],
)
def test_an_answer_of_the_wrong_kind_makes_the_item_bad(problem_type, answer):
    with pytest.raises(BadItem):
        reward(problem_type, "B", answer)


def test_an_unknown_problem_type_makes_the_item_bad():
    with pytest.raises(BadItem, match="essay"):
        reward("essay", "B", "B")
