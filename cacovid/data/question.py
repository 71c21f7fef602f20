"""What one question must hold, without its video."""

import math
from typing import get_args

from cacovid.answering.prompting import option_letters
from cacovid.answering.reward import final_answer, parse_number
from cacovid.errors import BadItem
from cacovid.records import ProblemType, VideoQuestion

PROBLEM_TYPES: tuple[str, ...] = get_args(ProblemType)


def check_question(item: VideoQuestion) -> None:
    """Check one question by itself, without its video.

    Raises:
        BadItem: an empty field, an unknown problem type, no options, an answer that is no option or
            no number where one is needed, an evidence cell below 0, an empty segment.
    """
    for name in ("id", "video", "question", "answer"):
        if not getattr(item, name).strip():
            raise BadItem(f"question {item.id!r}: {name} is empty; fill the column {name!r}")
    if item.problem_type not in PROBLEM_TYPES:
        raise BadItem(
            f"question {item.id!r}: problem_type is {item.problem_type!r}; use one of {', '.join(PROBLEM_TYPES)}"
        )
    if item.problem_type == "multiple choice":
        _check_choice(item)
    elif item.problem_type in ("numerical", "regression"):
        _check_number(item)
    _check_seconds(item)
    if any(cell < 0 for cell in (*item.evidence, *item.other_objects)):
        raise BadItem(f"question {item.id!r}: a token cell is negative; cells count from 0")


def _check_choice(item: VideoQuestion) -> None:
    if len(item.options) < 2:
        raise BadItem(f"question {item.id!r}: multiple choice with {len(item.options)} options; give at least 2")
    if not all(option.strip() for option in item.options):
        raise BadItem(f"question {item.id!r}: an option of {list(item.options)} is empty; fill it")
    letters = option_letters(len(item.options))
    if item.answer not in letters:
        raise BadItem(
            f"question {item.id!r}: answer {item.answer!r} is no option; give a letter {letters[0]}-{letters[-1]}"
        )


def _check_seconds(item: VideoQuestion) -> None:
    if item.duration is not None and not 0 < item.duration < math.inf:
        raise BadItem(f"question {item.id!r}: duration is {item.duration} s; give a positive number or null")
    if not 0 <= (item.start or 0.0) < (math.inf if item.end is None else item.end):
        raise BadItem(
            f"question {item.id!r}: the segment from {item.start} to {item.end} s is empty; correct start and end"
        )


def _check_number(item: VideoQuestion) -> None:
    if parse_number(final_answer(item.answer)) is None:
        raise BadItem(
            f"question {item.id!r}: answer {item.answer!r} is no number, as {item.problem_type} needs; "
            "correct it or the problem_type"
        )
