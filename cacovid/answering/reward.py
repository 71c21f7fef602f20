"""Rewards: how right a generated text is, by problem type.

Source: the problem types of Video-R1 as used by Ma et al. The fifth, multiple choice, is answered by the
likeliest option letter (:mod:`cacovid.answering.scoring`), so that no letter has to be read out of a text.
"""

import re
from dataclasses import dataclass
from functools import cache
from math import isfinite
from typing import Any

from cacovid.errors import BadItem
from cacovid.records import ProblemType

_TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.IGNORECASE | re.DOTALL)
_NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?![\d])")
_WORD = re.compile(r"[a-z0-9]", re.IGNORECASE | re.ASCII)  # what rouge_score's tokenizer keeps of a text


@dataclass(frozen=True)
class Number:
    """A number as it was written."""

    value: float
    has_decimals: bool


def reward(problem_type: ProblemType, prediction: str, answer: str) -> float:
    """How right ``prediction`` is, in [0, 1], given the known ``answer``; 0 where no answer can be read from it.

    Raises BadItem when the *answer* is not of its problem type.
    """
    rules = {
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


def parse_number(text: str) -> Number | None:
    """The last number in ``text`` ('12 + 5 = 17' gives 17), with or without thousands separators; None if none."""
    found = _NUMBER.findall(text.replace("\N{MINUS SIGN}", "-"))
    if not found:
        return None
    plain = found[-1].replace(",", "")
    value = float(plain)
    return Number(value, "." in plain) if isfinite(value) else None


def _numerical(prediction: str, answer: str) -> float:
    expected, found = _expected_number(answer), parse_number(prediction)
    if found is None or found.has_decimals != expected.has_decimals:
        return 0.0
    return float(round(found.value, 2) == round(expected.value, 2))


def _regression(prediction: str, answer: str) -> float:
    expected, found = _expected_number(answer), parse_number(prediction)
    if found is None:
        return 0.0
    if expected.value == 0:
        return float(found.value == 0)
    error = abs(found.value - expected.value) / abs(expected.value)
    return max(0.0, 1.0 - error)


def _expected_number(answer: str) -> Number:
    expected = parse_number(answer)
    if expected is None:
        raise BadItem(f"the answer {answer!r} holds no number: mend it or change problem_type")
    return expected


def _ocr(prediction: str, answer: str) -> float:
    import jiwer

    _expected_text(answer)
    if not prediction:
        return 0.0
    return max(0.0, 1.0 - float(jiwer.wer(answer, prediction)))


def _free_form(prediction: str, answer: str) -> float:
    _expected_text(answer)
    if not _WORD.search(answer):
        raise BadItem(f"ROUGE finds no word of letters a-z or digits in the answer {answer!r}: change problem_type")
    if not _WORD.search(prediction):
        return 0.0
    scores = _rouge().score(answer, prediction)
    return sum(float(score.fmeasure) for score in scores.values()) / len(scores)


def _expected_text(answer: str) -> None:
    if not answer:
        raise BadItem("the answer is empty: give a text")


@cache
def _rouge() -> Any:  # noqa: ANN401 - the library has no types
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
