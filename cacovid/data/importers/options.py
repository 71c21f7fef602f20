"""Options without their letters, and answers as letters."""

import re
from collections.abc import Sequence

from cacovid.answering.prompting import option_letters
from cacovid.data.importers.raw import Rejected

# "A. red", "(A) red", "A) red", "A: red"; TempCompass: "Option 1: red", "Caption A: red"
_MARKED = re.compile(r"^(?:(?:Option|Caption|Sentence|Description)\s+)?\(?([A-Z]|\d{1,2})[.):]\s*(.*)$", re.DOTALL)
_HEADING = re.compile(r"^\s*(?:options|choices|candidates)\s*:?\s*$", re.IGNORECASE)


def stripped(options: Sequence[str]) -> tuple[str, ...]:
    """Option texts without letters. A letter counts as one only where every option has its own, in order."""
    found = [_marked(option) for option in options]
    letters = [each[0] for each in found if each is not None]
    if len(options) > 1 and letters == list(option_letters(len(options))):
        return tuple(each[1] for each in found if each is not None)
    return tuple(option.strip() for option in options)


def split_off(question: str) -> tuple[str, tuple[str, ...]]:
    """A question that ends in lettered options, one a line, apart from them; no options: as it is, without any."""
    lines = [line.strip() for line in question.strip().splitlines() if line.strip()]
    marks = [_marked(line) for line in lines]
    for start, mark in enumerate(marks):
        rest = [each for each in marks[start:] if each is not None]
        if mark is None or mark[0] != "A" or len(rest) < len(marks) - start or len(rest) < 2:
            continue
        if [letter for letter, _ in rest] == list(option_letters(len(rest))):
            asked = [line for line in lines[:start] if not _HEADING.match(line)]
            return "\n".join(asked), tuple(text for _, text in rest)
    return question.strip(), ()


def letter_of_text(answer: str, options: Sequence[str]) -> str:
    """The letter of the option that reads ``answer``.

    Raises:
        Rejected: None does, or several.
    """
    letters = option_letters(len(options))
    same = [letter for letter, text in zip(letters, options, strict=True) if _plain(text) == _plain(answer)]
    if len(same) > 1:
        raise Rejected("the answer is the text of several options", f"{answer!r} is {', '.join(same)}")
    if not same:
        raise Rejected("the answer is the text of no option", f"{answer!r}")
    return same[0]


def letter_of(answer: str, options: Sequence[str]) -> str:
    """The letter of an answer written as a letter (``A``, ``(A)``, ``A. red``), or as the option's text.

    Raises:
        Rejected: It is neither.
    """
    mark = _marked(answer) or (_marked(f"{answer}.") if len(answer) == 1 else None)
    if mark is not None and mark[0] in option_letters(len(options)):
        text = options[ord(mark[0]) - ord("A")]
        if mark[1] and _plain(mark[1]) != _plain(text):
            raise Rejected("the answer's letter stands at another option than its text", f"{answer!r}")
        return mark[0]
    return letter_of_text(answer, options)


def _marked(text: str) -> tuple[str, str] | None:
    """Letter (numbers as letters, from 1) and text of a lettered option."""
    found = _MARKED.match(text.strip())
    if found is None:
        return None
    mark, rest = found.groups()
    if mark.isdigit():
        if not 1 <= int(mark) <= 26:
            return None
        mark = chr(ord("A") + int(mark) - 1)
    return mark, rest.strip()


def _plain(text: str) -> str:
    """What counts when texts are compared."""
    return " ".join(text.split()).rstrip(".").casefold()
