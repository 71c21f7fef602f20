"""Questions that have something in common: by what the data set says of them, and by how hard they are."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from cacovid.evaluation.result import Slice
from cacovid.evaluation.row_sums import known_reward, mean, reward, tally
from cacovid.evaluation.rows import FULL, Cell, QuestionRow
from cacovid.records import VideoQuestion

_RIGHT = 0.5  # a reward from which an answer counts as right, for the split by difficulty
_DURATIONS = ((60.0, "up to 1 min"), (600.0, "1 to 10 min"), (3600.0, "10 to 60 min"), (math.inf, "over 1 h"))
_SPLITS = ("duration", "group", "question_type")


def slices_of(items: Sequence[VideoQuestion], found: Mapping[Cell, Mapping[str, QuestionRow]]) -> Iterable[Slice]:
    """By what the data set says of its questions, and by what random tokens lead to."""
    for name in _SPLITS:
        parts: dict[str, set[str]] = defaultdict(set)
        for item in items:
            if value := _value_of(item, name):
                parts[value].add(item.id)
        for value, questions in parts.items():
            for cell, rows in found.items():
                yield from _slice(name, value, cell, rows, questions)
    for cell, rows in found.items():
        lucky = found.get(("random", cell[1]), {})
        right = {question for question, row in lucky.items() if known_reward(row) >= _RIGHT}
        if cell[0] != FULL and cell[1] != 1:
            yield from _slice("random", "right", cell, rows, right)
            yield from _slice("random", "wrong", cell, rows, lucky.keys() - right)


def _slice(
    by: str, value: str, cell: Cell, rows: Mapping[str, QuestionRow], questions: Iterable[str]
) -> Iterable[Slice]:
    wanted = set(questions)
    summed = tally((row for question, row in rows.items() if question in wanted), reward)
    if summed.count:
        yield Slice(by, value, *cell, mean(summed), summed.stderr(), summed.count)


def _value_of(item: VideoQuestion, name: str) -> str:
    """'' where the table does not say."""
    if name != "duration":
        return str(getattr(item, name))
    return "" if item.duration is None else next(label for most, label in _DURATIONS if item.duration <= most)
