"""The text of a question as the Video-LLM reads it (without its chat template)."""

import string
from collections.abc import Sequence

from cacovid.errors import BadItem
from cacovid.records import VideoQuestion


def option_letters(count: int) -> tuple[str, ...]:
    """The letters of ``count`` options: A, B, C, ...

    Raises:
        BadItem: more options than letters.
    """
    if count > len(string.ascii_uppercase):
        raise BadItem(f"{count} options: at most {len(string.ascii_uppercase)} can be lettered; drop some")
    return tuple(string.ascii_uppercase[:count])


def lettered(options: Sequence[str]) -> list[str]:
    """Option texts behind their letters, e.g. ``"B. red"``.

    Raises:
        BadItem: more options than letters.
    """
    return [f"{letter}. {text}" for letter, text in zip(option_letters(len(options)), options, strict=True)]


def spoken(options: Sequence[str], answer: str) -> str:
    """The one of the :func:`lettered` options that ``answer`` is the letter of; else ``answer``, which is a text."""
    return next((option for option in options if answer and option.startswith(f"{answer}.")), answer)


def format_prompt(item: VideoQuestion, instruction: str = "") -> str:
    """Question, lettered options and instruction, one a line; absent parts leave no empty line.

    The instruction ("Answer with the option's letter ...") belongs to multiple choice and is left
    out of the other problem types.
    """
    lines = [item.question]
    if item.problem_type == "multiple choice":
        lines += lettered(item.options)
        if instruction:
            lines.append(instruction)
    return "\n".join(lines)
