import pytest

from cacovid.answering.reward import Number, Reward, option_letter, parse_number, reward
from cacovid.errors import BadItem


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(b)", "B"),
        (" B.\n", "B"),
        ("B. red", "B"),
        ("B) red", "B"),
        ("(B) a red ball", "B"),
        ("B red", "B"),
        ("A red ball", "A"),
        ("Answer: B", "B"),
        ("answer is (c).", "C"),
        ("The answer is B.", "B"),
        ("The best answer is: option D", "D"),
        ("A quick look shows that the correct answer is C", "C"),
        ("It is the red one, so (D).", "D"),
        ("I would choose D", "D"),
        ("**B**", "B"),
        ("The answer is B, not option C.", "B"),
        ("Option A is wrong, the answer is (b)", "B"),
        ("The answer is a red ball, option C", "C"),
        ("My answer: I think D", "D"),
        ("answer: I", "I"),
        ("I. nine", "I"),
        ("Because of the circle", None),
        ("I am not sure", None),
        ("", None),
        ("42", None),
    ],
)
def test_option_letter(text, letter):
    assert option_letter(text) == letter


@pytest.mark.parametrize(
    "prediction",
    [
        "B",
        "<think>Not A, not C.</think><answer>B</answer>",
        "<answer>A</answer> No: <answer>B</answer>",
        "<answer>(B)",
        "Answer: B",
        "<ANSWER> b </ANSWER>",
    ],
)
def test_multiple_choice_right(prediction):
    assert reward("multiple choice", prediction, "B") == Reward(1.0, True)


def test_multiple_choice_wrong_is_told_apart_from_unreadable():
    assert reward("multiple choice", "C", "B") == Reward(0.0, True)
    assert reward("multiple choice", "no idea", "B") == Reward(0.0, False)


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
    ("prediction", "answer", "expected"),
    [
        ("17", "17", Reward(1, True)),
        ("3.141", "3.14", Reward(1, True)),
        ("3.15", "3.14", Reward(0, True)),
        ("3.0", "3", Reward(0, True)),  # one with decimals, one without
        ("1,000", "1000", Reward(1, True)),
        ("<answer>5</answer> of 9", "5", Reward(1, True)),
        ("many", "5", Reward(0, False)),
    ],
)
def test_numerical(prediction, answer, expected):
    assert reward("numerical", prediction, answer) == expected


@pytest.mark.parametrize(
    ("prediction", "answer", "value"),
    [("90", "100", 0.9), ("110", "100", 0.9), ("-100", "100", 0), ("0", "0", 1), ("1", "0", 0), ("-9", "-10", 0.9)],
)
def test_regression_is_one_minus_the_relative_error(prediction, answer, value):
    assert reward("regression", prediction, answer).value == pytest.approx(value)


@pytest.mark.parametrize(
    ("prediction", "value"),
    [("stop the red bus", 1), ("stop the blue bus", 0.75), ("stop the red", 0.75), ("go", 0), ("a b c d e f g h i", 0)],
)
def test_ocr_is_one_minus_the_word_error_rate(prediction, value):
    assert reward("OCR", prediction, "stop the red bus") == Reward(pytest.approx(value), True)


def test_free_form_is_the_mean_of_three_rouge_f_scores():
    assert reward("free-form", "the cat sat", "the cat sat").value == pytest.approx(1)
    assert reward("free-form", "jumped twice", "jumping twice").value == pytest.approx(1)  # word stems count
    # rouge-1: 2 of 3 words both ways; rouge-2: 1 of 2; rouge-L: 2 of 3
    assert reward("free-form", "the cat ran", "the cat sat").value == pytest.approx((2 / 3 + 1 / 2 + 2 / 3) / 3)


def test_a_prediction_without_any_word_for_rouge_is_unreadable():
    assert reward("free-form", "?!", "the cat sat") == Reward(0.0, False)


@pytest.mark.parametrize("problem_type", ["numerical", "regression", "OCR", "free-form", "multiple choice"])
def test_an_empty_prediction_is_unreadable(problem_type):
    answer = "B" if problem_type == "multiple choice" else "5"
    assert reward(problem_type, " ", answer) == Reward(0.0, False)


@pytest.mark.parametrize(
    ("problem_type", "answer"),
    [
        ("multiple choice", "red"),
        ("multiple choice", ""),
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
