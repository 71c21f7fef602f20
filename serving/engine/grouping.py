"""Members that are handled together."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Member = TypeVar("Member")


def grouped(members: Sequence[Member], key: Callable[[Member], object]) -> list[list[Member]]:
    """Those with equal keys together, in order of first appearance."""
    groups: dict[object, list[Member]] = {}
    for member in members:
        groups.setdefault(key(member), []).append(member)
    return list(groups.values())
