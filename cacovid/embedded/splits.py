"""Clip seeds of the four disjoint splits."""

from cacovid.errors import UserError

MODEL = range(10_000_000, 11_000_000)  # what the frozen tiny Video-LLM was trained on
TRAIN = range(0, 1_000_000)  # what compression policies are trained on
DEVELOPMENT = range(1_000_000, 1_100_000)  # whatever one decides by looking
HELD_OUT = range(2_000_000, 2_100_000)  # reported figures only

SPLITS = {"model": MODEL, "train": TRAIN, "development": DEVELOPMENT, "held-out": HELD_OUT}


def split_seeds(split: str, count: int, first: int = 0) -> range:
    """``count`` clip seeds of a split, from its ``first``-th on.

    Raises UserError for an unknown split and for more clips than the split has.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r} is unknown: choose one of {', '.join(SPLITS)}")
    seeds = SPLITS[split]
    if count < 1 or first < 0 or first + count > len(seeds):
        raise UserError(f"clips {first} to {first + count} do not lie in split {split!r}, which has {len(seeds)}")
    return seeds[first : first + count]
