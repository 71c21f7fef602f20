"""Rewards: how right a prediction is, by problem type.

Source: the five problem types of Video-R1 as used by Ma et al. Departure: a prediction without a
readable answer is told apart from a wrong one (``parsed=False``) instead of silently becoming 0.
"""

import re
from dataclasses import dataclass
from functools import cache
from math import isfinite
from typing import Any

from cacovid.errors import BadItem
from cacovid.records import ProblemType

_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.IGNORECASE | re.DOTALL)
_LETTER_ALONE = re.compile(r"\W*([A-Za-z])\W*")
_LETTER_FIRST = re.compile(r"\W*([A-HJ-Z]|I(?=\W*\n|[.):]))(?![A-Za-z0-9'])")  # not the pronoun
_NAMED = r"\W*(?i:is\b|are\b|would be\b)?\W*(?i:option\b|choice\b)?[^\w(]*(?:([A-HJ-Z]|I(?!\W+\w))\b|\((\w)\))"
_LETTER_OF_ANSWER = re.compile(r"\b(?i:answer)\b" + _NAMED)
_LETTER_OF_OPTION = re.compile(r"\b(?i:option|choice)\b" + _NAMED)
_LETTER_BRACKETED = re.compile(r"\(([A-Z])\)")
_LETTER_ANYWHERE = re.compile(r"(?<![A-Za-z0-9'])([B-HJ-Z])(?![A-Za-z0-9'])")
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?![\d])")
_WORD = re.compile(r"[a-z0-9]", re.IGNORECASE | re.ASCII)  # what rouge_score's tokenizer keeps of a text


@dataclass(frozen=True)
class Reward:
    """Correctness in [0, 1]; ``parsed`` is False when the prediction held no answer of the asked kind."""

    value: float
    parsed: bool


@dataclass(frozen=True)
class Number:
    """A number as it was written."""

    value: float
    has_decimals: bool


def reward(problem_type: ProblemType, prediction: str, answer: str) -> Reward:
    """How right ``prediction`` is, given the known ``answer``.

    Raises BadItem when the *answer* is not of its problem type; an unreadable prediction is
    ``Reward(0, parsed=False)``.
    """
    rules = {
        "multiple choice": _multiple_choice,
        "numerical": _numerical,
        "OCR": _ocr,
        "free-form": _free_form,
        "regression": _regression,
    }
    if problem_type not in rules:
        raise BadItem(f"problem_type {problem_type!r} is unknown: use one of {', '.join(rules)}")
    return rules[problem_type](final_answer(prediction), final_answer(answer))


def final_answer(text: str) -> str:
    """The contents of the last ``<answer>`` tag, else the whole text, stripped."""
    tagged = _TAG.findall(text)
    return str(tagged[-1] if tagged else text).strip()


def option_letter(text: str) -> str | None:
    """The option letter that ``text`` answers with, e.g. in 'B', '(b)', 'B. red', 'The answer is B'; None if none."""
    alone = _LETTER_ALONE.fullmatch(text)
    if alone:
        return alone.group(1).upper()
    answers = list(_LETTER_OF_ANSWER.finditer(text))
    first = _LETTER_FIRST.match(text)
    article = text.lstrip().startswith("A ")
    if first and not (answers and article):
        return first.group(1)
    if answers:
        return _letter(answers[-1])
    other = _LETTER_OF_OPTION.search(text) or _LETTER_BRACKETED.search(text) or _LETTER_ANYWHERE.search(text)
    return _letter(other) if other else None


def _letter(match: re.Match[str]) -> str:
    return next(group for group in match.groups() if group).upper()


def parse_number(text: str) -> Number | None:
    """The last number in ``text`` ('12 + 5 = 17' gives 17), with or without thousands separators; None if none."""
    found = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    if not found:
        return None
    plain = found[-1].replace(",", "")
    value = float(plain)
    return Number(value, "." in plain) if isfinite(value) else None


def _multiple_choice(prediction: str, answer: str) -> Reward:
    expected = _LETTER_ALONE.fullmatch(answer)
    if not expected:
        raise BadItem(f"the answer {answer!r} of a multiple-choice question is no option letter: give e.g. 'B'")
    letter = option_letter(prediction)
    return Reward(float(letter == expected.group(1).upper()), letter is not None)


def _numerical(prediction: str, answer: str) -> Reward:
    expected, found = _expected_number(answer), parse_number(prediction)
    if found is None:
        return Reward(0.0, False)
    same = found.has_decimals == expected.has_decimals and round(found.value, 2) == round(expected.value, 2)
    return Reward(float(same), True)


def _regression(prediction: str, answer: str) -> Reward:
    expected, found = _expected_number(answer), parse_number(prediction)
    if found is None:
        return Reward(0.0, False)
    if expected.value == 0:
        return Reward(float(found.value == 0), True)
    error = abs(found.value - expected.value) / abs(expected.value)
    return Reward(max(0.0, 1.0 - error), True)


def _expected_number(answer: str) -> Number:
    expected = parse_number(answer)
    if expected is None:
        raise BadItem(f"the answer {answer!r} holds no number: mend it or change problem_type")
    return expected


def _ocr(prediction: str, answer: str) -> Reward:
    import jiwer

    _expected_text(answer)
    if not prediction:
        return Reward(0.0, False)
    return Reward(max(0.0, 1.0 - float(jiwer.wer(answer, prediction))), True)


def _free_form(prediction: str, answer: str) -> Reward:
    _expected_text(answer)
    if not _WORD.search(answer):
        raise BadItem(f"ROUGE finds no word of letters a-z or digits in the answer {answer!r}: change problem_type")
    if not _WORD.search(prediction):
        return Reward(0.0, False)
    scores = _rouge().score(answer, prediction)
    return Reward(sum(float(score.fmeasure) for score in scores.values()) / len(scores), True)


def _expected_text(answer: str) -> None:
    if not answer:
        raise BadItem("the answer is empty: give a text")


@cache
def _rouge() -> Any:  # noqa: ANN401 - the library has no types
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
