import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cacovid.config import SelectionConfig
from cacovid.errors import UserError
from cacovid.methods.selection import apportion, budget, frame_budgets, frame_shares, select_tokens, spread_evenly
from cacovid.records import TokenGrid
from cacovid.seeding import generator

RULES = ["global", "half-uniform", "frame-budgets"]
GRIDS = st.builds(TokenGrid, st.integers(1, 12), st.integers(1, 6), st.integers(1, 6))


@settings(max_examples=300, deadline=None)
@given(
    GRIDS, st.floats(1e-6, 1.0), st.sampled_from(RULES), st.integers(0, 3), st.floats(0.01, 1.0), st.floats(0.1, 9.0)
)
def test_exactly_the_budget_is_retained(grid, retention, rule, levels, scored_share, max_frame_share):
    draw = generator("selection", grid.tokens, levels)
    # few levels give many ties, none gives constant scores
    scores = torch.randint(levels + 1, (grid.tokens,), generator=draw).float() * 100
    frames = torch.randint(levels + 1, (grid.frames,), generator=draw).float() * 100
    config = SelectionConfig(rule=rule, scored_share=scored_share, max_frame_share=max_frame_share)
    kept = select_tokens(scores, frames, grid, retention, config)
    assert kept.dtype == torch.int64
    assert kept.shape == (budget(retention, grid.tokens),)
    assert bool((kept.diff() > 0).all())
    assert int(kept[0]) >= 0
    assert int(kept[-1]) < grid.tokens


@pytest.mark.parametrize(
    ("retention", "tokens", "expected"),
    [(0.1, 288, 28), (0.29, 100, 29), (1 / 3, 6, 2), (1.0, 7, 7), (0.001, 7, 1), (0.07, 100, 7)],
)
def test_budget(retention, tokens, expected):
    assert budget(retention, tokens) == expected


@pytest.mark.parametrize("retention", [0.0, -0.1, 1.01, float("nan"), float("inf")])
def test_retention_outside_its_range_is_an_error(retention):
    with pytest.raises(UserError, match="retention"):
        budget(retention, 10)


def select(rule: str, retention: float, scores: list[float], frames: list[float], grid: TokenGrid) -> list[int]:
    config = SelectionConfig(rule=rule)
    return select_tokens(torch.tensor(scores), torch.tensor(frames), grid, retention, config).tolist()


def test_global_takes_the_top_scores_and_the_lower_index_on_ties():
    assert select("global", 0.5, [1, 5, 5, 0, 1, 1, 9, 1], [0, 0], TokenGrid(2, 2, 2)) == [0, 1, 2, 6]


def test_half_uniform_fills_evenly_between_the_scored():
    scores = [0, 0, 0, 9, 0, 0, 0, 8]
    # 2 of 4 by score; the other 2 lie evenly in 0,1,2,4,5,6
    assert select("half-uniform", 0.5, scores, [0, 0], TokenGrid(2, 2, 2)) == [1, 3, 5, 7]
    # of 3 only one goes by score
    assert select("half-uniform", 0.375, [0, 0, 9, 8, 0, 0, 0, 0], [0, 0], TokenGrid(2, 2, 2)) == [1, 2, 6]


def test_a_budget_of_one_goes_by_score():
    for rule in RULES:
        assert select(rule, 0.01, [0, 0, 7, 0, 0, 0], [0.0, 0.0], TokenGrid(2, 3, 1)) == [2]


def test_frame_budgets_prefer_frames_of_high_score():
    grid = TokenGrid(3, 4, 4)
    scores = torch.rand(48, generator=generator("budgets"))
    config = SelectionConfig(rule="frame-budgets", scored_share=1.0, max_frame_share=3.0)
    kept = select_tokens(scores, torch.tensor([0.2, -0.2, 0.0]), grid, 0.5, config)
    counts = torch.bincount(kept // 16, minlength=3).tolist()
    assert counts[0] > counts[2] > counts[1] >= 1
    best = scores[:16].topk(counts[0]).indices.sort().values
    assert kept[: counts[0]].tolist() == best.tolist()


def slow_shares(scores: list[float], max_frame_share: float) -> list[float]:
    """What is out of bounds is fixed there, the rest scaled to what is left, until nothing is out of bounds."""
    frames, scale = len(scores), max(1.0, *map(abs, scores))
    weights = [math.exp(3 * score / scale) for score in scores]
    lower, upper = 0.5 / frames, max(max_frame_share, 1.0) / frames
    low, high = 0.0, 1e9  # bisection on the factor
    for _ in range(200):
        factor = (low + high) / 2
        total = sum(min(max(factor * weight, lower), upper) for weight in weights)
        low, high = (factor, high) if total < 1 else (low, factor)
    return [min(max(high * weight, lower), upper) for weight in weights]


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=40), st.floats(0.2, 50.0))
def test_frame_shares_sum_to_1_within_their_bounds_in_the_ratio_of_the_softmax(scores, max_frame_share):
    shares = frame_shares(torch.tensor(scores), max_frame_share)
    torch.testing.assert_close(shares.tolist(), slow_shares(scores, max_frame_share), atol=1e-6, rtol=1e-6)
    assert float(shares.sum()) == pytest.approx(1)
    assert float(shares.max()) <= max(max_frame_share, 1) / len(scores) + 1e-12


def test_no_frame_gets_more_than_its_capped_share():
    """What clipping and renormalising made of it: 47 tokens where the cap allows 36.8."""
    grid = TokenGrid(32, 14, 14)
    scores = torch.full((32,), -8.0)
    scores[:3] = 8
    seats = 784
    budgets = frame_budgets(scores, seats, grid, 1.5)
    assert int(budgets.sum()) == seats
    assert int(budgets.max()) == math.floor(1.5 * seats / 32) == 36
    clipped = torch.softmax(3 * scores.double() / 8, dim=0).clamp(0.5 / 32, 1.5 / 32)
    assert math.floor(float((clipped / clipped.sum()).max()) * seats) > 36


def test_frames_at_the_cap_come_in_the_order_of_their_scores():
    scores = torch.tensor([0.0, 2.0, 3.0, 2.5, -3.0, -3.0, -3.0, -3.0])
    assert frame_budgets(scores, 2, TokenGrid(8, 6, 6), 1.5).nonzero().flatten().tolist() == [2, 3]


def test_a_frame_head_without_signal_gives_near_uniform_shares():
    noise = 0.01 * torch.randn(8, generator=generator("noise"))
    assert float((frame_shares(noise, 1.5) - 1 / 8).abs().max()) < 0.01


@given(st.integers(1, 10), st.integers(1, 8), st.data())
def test_seats_are_given_out_completely_within_capacity_and_one_a_frame_first(frames, capacity, data):
    seats = data.draw(st.integers(1, frames * capacity))
    shares = torch.tensor(data.draw(st.lists(st.floats(0.001, 1), min_size=frames, max_size=frames)))
    counts = apportion(shares / shares.sum(), seats, capacity)
    assert int(counts.sum()) == seats
    assert int(counts.max()) <= capacity
    assert int(counts.min()) >= (1 if seats >= frames else 0)


def test_seats_are_proportional_where_that_is_possible():
    assert apportion(torch.tensor([0.5, 0.3, 0.2]), 10, 10).tolist() == [5, 3, 2]


@given(st.integers(0, 50), st.integers(0, 50))
def test_even_spread_is_distinct_and_in_range(count, more):
    positions = spread_evenly(count, count + more)
    assert len(set(positions.tolist())) == count
    assert all(0 <= p < count + more for p in positions.tolist())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_are_an_error(bad):
    scores = torch.zeros(8)
    scores[2] = bad
    with pytest.raises(UserError, match="1 of 8 token scores"):
        select_tokens(scores, torch.zeros(2), TokenGrid(2, 2, 2), 0.5, SelectionConfig())
    with pytest.raises(UserError, match="frame scores"):
        select_tokens(
            torch.zeros(8), torch.tensor([0.0, bad]), TokenGrid(2, 2, 2), 0.5, SelectionConfig(rule="frame-budgets")
        )


def test_scores_of_another_grid_are_an_error():
    with pytest.raises(UserError, match=r"\(7,\)"):
        select_tokens(torch.zeros(7), torch.zeros(2), TokenGrid(2, 2, 2), 0.5, SelectionConfig())
