"""What a report is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image


@dataclass(frozen=True)
class RunRecord:
    """A training run, as its folder tells it."""

    name: str
    rows: Sequence[Mapping[str, Any]]  # of metrics.jsonl
    config: str  # config.toml
    facts: Mapping[str, str]  # what else is worth a line, by its name


@dataclass(frozen=True, eq=False)
class Answered:
    """One question, answered from the tokens that a policy kept and from all."""

    id: str
    question: str
    options: tuple[str, ...]  # lettered
    expected: str
    compressed: str  # the answer from the kept tokens
    full: str  # from all
    right: bool  # compressed
    full_right: bool
    likelihood: float  # of the right option from the kept tokens; 0 where the answer was generated
    kept: int
    tokens: int
    pictures: Mapping[str, Image]  # by caption, the kept tokens first; none of those that are only listed


@dataclass(frozen=True)
class Gallery:
    """Some questions as one policy answers them."""

    policy: str
    retention: float
    looked_at: int  # questions
    right: Sequence[Answered]
    wrong: Sequence[Answered]
    worst: Sequence[Answered]  # right from all tokens, wrong from the kept ones
    skipped: int = 0  # questions that could not be used


@dataclass(frozen=True)
class Worst:
    """A question that trained policies fail on, by an evaluation's rows."""

    id: str
    text: str  # "" if the table is not known
    expected: str
    right: float  # mean reward over policies and ratios
    others: float | None  # over the training-free methods; None without any
    full: float | None  # from all tokens
