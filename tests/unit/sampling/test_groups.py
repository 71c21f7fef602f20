from collections import Counter
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cacovid.config import SamplingConfig
from cacovid.sampling.groups import draw_successively, draw_tokens, group_count, group_layout, group_probabilities
from cacovid.seeding import generator
from tests.support.chi_square import assert_follows
from tests.unit.sampling.test_capping import slow_cap


@pytest.mark.parametrize(
    ("rate", "per_frame", "kept", "group_size", "expected"),
    [
        (3 / 36, 36, 3, 2, 6),  # 1/(r*2) is exactly 6, whatever floating point says
        (1 / 93, 93, 1, 1, 93),  # 1/r is 92.99...
        (1 / 36, 36, 1, 2, 18),
        (0.02, 196, 4, 2, 25),
        (0.5, 6, 3, 2, 1),
        (0.01, 36, 1, 2, 36),  # 50 groups are wanted, a frame has 36 tokens
        (0.2, 6, 1, 1, 5),
    ],
)
def test_group_count(rate, per_frame, kept, group_size, expected):
    assert group_count(rate, per_frame, kept, group_size) == expected


@given(st.integers(1, 60), st.data())
def test_groups_partition_the_ranks_in_order(per_frame, data):
    count = data.draw(st.integers(1, per_frame))
    layout = group_layout(per_frame, count)
    assert layout.ranks[layout.inside].tolist() == list(range(per_frame))
    lengths = layout.inside.sum(dim=1)
    assert int(lengths.max() - lengths.min()) <= 1


def successive(weights: dict[int, float], count: int) -> dict[frozenset[int], float]:
    """Probability of each subset under successive draws without replacement."""
    if count == 0:
        return {frozenset(): 1.0}
    total = sum(weights.values())
    result: dict[frozenset[int], float] = Counter()
    for item, weight in weights.items():
        rest = {other: value for other, value in weights.items() if other != item}
        for subset, probability in successive(rest, count - 1).items():
            result[subset | {item}] += weight / total * probability
    return result


def test_successive_draws_follow_their_enumeration():
    weights = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0], dtype=torch.float64)
    drawn = draw_successively(weights.expand(20_000, -1), 2, generator("successive"))
    expected = successive({i: float(weights[i]) for i in range(4)}, 2)
    assert_follows([frozenset(row) for row in drawn.tolist()], expected)


def enumerate_token_draw(scores: torch.Tensor, kept: int, groups: int, cap: float) -> dict[frozenset[int], float]:
    """Probability of every token subset of one frame, straight from the description of the sampler."""
    probability = torch.softmax(scores, dim=0)
    order = scores.argsort(descending=True).tolist()
    length = len(order) // groups
    members = [order[g * length : (g + 1) * length] for g in range(groups)]
    masses = slow_cap([sum(float(probability[i]) for i in group) for group in members], cap)
    result: dict[frozenset[int], float] = {}
    for group, mass in zip(members, masses, strict=True):
        inside = sum(float(probability[i]) for i in group)
        weights = {i: min(max(float(probability[i]) / inside, 0.5 / length), 2 / length) for i in group}
        for subset, chance in successive(weights, kept).items():
            result[subset] = mass * chance
    return result


def test_token_samples_follow_the_enumeration_of_every_frame():
    scores = torch.randn(3, 8, generator=generator("scores"), dtype=torch.float64) * 1.5
    config = SamplingConfig(group_size=2, max_group_prob=1.3)
    drawn = draw_tokens(scores, 2, 20_001, 0.25, config, generator("tokens"))[1:]  # sample 0 is the top-k
    for frame in range(3):
        expected = enumerate_token_draw(scores[frame], kept=2, groups=2, cap=0.65)
        assert len(expected) == 2 * len(list(combinations(range(4), 2)))
        assert_follows([frozenset(row) for row in drawn[:, frame].tolist()], expected)


@pytest.mark.parametrize(
    ("groups", "max_group_prob", "expected"),
    [(2, 2.0, 0.9), (30, 2.0, 0.1), (4, 2.0, 0.5)],  # 2/n within 0.1..0.9
)
def test_the_cap_of_a_groups_probability_stays_within_its_range(groups, max_group_prob, expected):
    probabilities = torch.zeros(1, 60, dtype=torch.float64)
    probabilities[0, 0] = 1
    config = SamplingConfig(max_group_prob=max_group_prob)
    drawn = group_probabilities(probabilities, group_layout(60, groups), config)
    assert float(drawn[0, 0]) == pytest.approx(expected)
    assert float(drawn.sum()) == pytest.approx(1)


def test_frames_draw_their_groups_independently():
    scores = torch.zeros(2, 4, dtype=torch.float64)
    drawn = draw_tokens(scores, 2, 20_001, 0.5, SamplingConfig(group_size=1), generator("independent"))[1:]
    low = [(bool(row[0].min() >= 2), bool(row[1].min() >= 2)) for row in drawn]
    assert_follows(low, {(a, b): 0.25 for a in (False, True) for b in (False, True)})


def test_the_first_token_sample_is_the_plain_top_k():
    scores = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 5.0, 5.0, 5.0]], dtype=torch.float64)
    drawn = draw_tokens(scores, 2, 3, 0.5, SamplingConfig(), generator("top"))
    assert drawn[0].tolist() == [[1, 3], [0, 1]]


def test_saturated_scores_still_reach_other_groups():
    scores = torch.tensor([[1000.0, 999.0, -1000.0, -1001.0]], dtype=torch.float64)
    config = SamplingConfig(group_size=1, max_group_prob=1.4)
    drawn = draw_tokens(scores, 2, 2_001, 0.5, config, generator("saturated"))[1:, 0].sort(dim=-1).values
    assert_follows([tuple(row) for row in drawn.tolist()], {(0, 1): 0.7, (2, 3): 0.3})
