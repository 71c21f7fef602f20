"""Two methods on the same questions: the paired difference, and how likely chance alone would make it as large.

Questions about one clip fall together, so errors and the bootstrap take videos as the independent draws; McNemar's
test counts questions.

Shape legend: V videos, C comparisons, B resamples.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from scipy.special import bdtr
from torch import Tensor

from cacovid.evaluation.statistics import Tally
from cacovid.seeding import generator

Key = TypeVar("Key")
RESAMPLES = 10_000  # the smallest p of the bootstrap is one in so many
_AT_ONCE = 250  # resamples held in memory
_SAME = 1e-12  # sums of graded rewards are equal up to this


@dataclass(frozen=True)
class Comparison:
    """A method against its best rival at one ratio."""

    rival: str
    difference: float  # of the accuracies, on the same questions
    stderr: float  # clustered by video
    mcnemar_p: float  # exact, two-sided
    bootstrap_p: float  # clustered by video, two-sided


@dataclass(frozen=True)
class Paired:
    """One value a question, of two methods or of one twice; in the same order."""

    videos: Sequence[str]
    ours: Sequence[float]
    theirs: Sequence[float]

    def differences(self) -> Tally:
        """Ours minus theirs, by video."""
        tally = Tally()
        for video, one, other in zip(self.videos, self.ours, self.theirs, strict=True):
            tally.add(one - other, video)
        return tally


def compare(pairs: Mapping[Key, tuple[str, Paired]], seed: int) -> dict[Key, Comparison]:
    """Each entry's method (ours) against its rival (theirs).

    Args:
        pairs: rival and values by any key, at least one question each.
        seed: of the bootstrap.
    """
    tallies = {key: paired.differences() for key, (_, paired) in pairs.items()}
    chances = bootstrap_p(list(tallies.values()), seed)
    found = {}
    for (key, tally), chance in zip(tallies.items(), chances, strict=True):
        rival, paired = pairs[key]
        chance_of_signs = mcnemar_p(paired.ours, paired.theirs)
        found[key] = Comparison(rival, tally.total / tally.count, tally.stderr(), chance_of_signs, chance)
    return found


def mcnemar_p(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Two-sided exact p of McNemar's test; of graded rewards, that of the sign test.

    Of the n questions on which the two differ, each would be better on half if they were alike. Source: McNemar 1947.
    """
    better = sum(one > other for one, other in zip(ours, theirs, strict=True))
    worse = sum(one < other for one, other in zip(ours, theirs, strict=True))
    return min(1.0, 2 * float(bdtr(min(better, worse), better + worse, 0.5)))


def bootstrap_p(tallies: Sequence[Tally], seed: int) -> list[float]:
    """Two-sided p of each mean being 0, from means over videos drawn with replacement.

    The share of resamples whose mean lies at least as far from the mean as the mean lies from 0, one added to both
    counts. Source: Davison and Hinkley 1997, sections 2.4 and 4.4.

    Args:
        tallies: of differences; each at least one question. Those over the same videos share their resamples.
        seed: of the resamples.
    """
    by_videos: dict[tuple[str, ...], list[int]] = {}
    for place, tally in enumerate(tallies):
        by_videos.setdefault(tuple(tally.by_video), []).append(place)
    found = [1.0] * len(tallies)
    for videos, places in by_videos.items():
        counts, sums = (
            torch.tensor([[tallies[place].by_video[video][part] for place in places] for video in videos]).double()
            for part in (0, 1)
        )
        means = sums.sum(dim=0) / counts.sum(dim=0)
        far = torch.zeros(len(places), dtype=torch.long)
        for weights in _resamples(len(videos), seed):
            drawn = (weights @ sums) / (weights @ counts)
            far += ((drawn - means).abs() >= means.abs() - _SAME).sum(dim=0)
        for place, extreme in zip(places, far.tolist(), strict=True):
            found[place] = (1 + extreme) / (1 + RESAMPLES)
    return found


def _resamples(videos: int, seed: int) -> Iterator[Tensor]:
    """(up to _AT_ONCE, V) how often each video is drawn, RESAMPLES rows in all."""
    random = generator(seed, "bootstrap", videos)
    for first in range(0, RESAMPLES, _AT_ONCE):
        rows = min(_AT_ONCE, RESAMPLES - first)
        drawn = torch.randint(videos, (rows, videos), generator=random)
        yield torch.zeros(rows, videos, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(rows, videos, dtype=torch.float64)
        )
