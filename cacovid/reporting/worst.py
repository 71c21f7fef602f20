"""The questions that trained policies fail on, by the rows of an evaluation."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from cacovid.answering.prompting import lettered, spoken
from cacovid.evaluation.rows import FULL
from cacovid.methods.registry import BASELINES, UNTRAINED
from cacovid.records import VideoQuestion
from cacovid.reporting.records import Worst

MOST = 10


def worst_questions(rows: Sequence[Mapping[str, Any]], items: Mapping[str, VideoQuestion]) -> list[Worst]:
    """Those with the least mean reward of trained policies; among equals, those that others do better on first.

    Args:
        rows: one a method, ratio and question.
        items: the questions by id, as far as they are known.
    """
    ours: dict[str, list[float]] = defaultdict(list)
    others: dict[str, list[float]] = defaultdict(list)
    full: dict[str, float] = {}
    for row in rows:
        if row["reward"] is None:
            continue
        if row["method"] == FULL:
            full[row["question"]] = row["reward"]
        elif row["method"] in BASELINES:
            others[row["question"]].append(row["reward"])
        elif row["method"] != UNTRAINED:
            ours[row["question"]].append(row["reward"])
    found = [
        _worst(question, rewards, others.get(question, []), full.get(question), items.get(question))
        for question, rewards in ours.items()
    ]
    found.sort(key=lambda each: (each.right, -(each.full or 0.0), -(each.others or 0.0), each.id))
    return [each for each in found if each.right < 1][:MOST]


def _worst(
    question: str, ours: Sequence[float], others: Sequence[float], full: float | None, item: VideoQuestion | None
) -> Worst:
    options = lettered(item.options) if item is not None else []
    return Worst(
        id=question,
        text="" if item is None else " ".join([item.question, *options]),
        expected="" if item is None else spoken(options, item.answer),
        right=sum(ours) / len(ours),
        others=sum(others) / len(others) if others else None,
        full=full,
    )
