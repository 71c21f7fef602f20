import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cacovid.config import SamplingConfig
from cacovid.errors import UserError
from cacovid.records import Combinations, Mode, TokenGrid
from cacovid.sampling.ocss import draw_frames, explored, frames_drawn, mode_counts, sample_combinations
from cacovid.sampling.rates import rate_of, step_tokens, tokens_at
from cacovid.seeding import generator
from tests.support.chi_square import assert_follows
from tests.unit.sampling.test_capping import slow_cap
from tests.unit.sampling.test_groups import successive


def draw(grid: TokenGrid, config: SamplingConfig, rate: float, seed: int = 0) -> tuple[Combinations, torch.Tensor]:
    inputs = generator("ocss", seed)
    tokens = torch.randn(grid.tokens, 2, generator=inputs)
    frames = torch.randn(grid.frames, 2, generator=inputs)
    features = torch.randn(grid.tokens, 8, generator=inputs)
    return sample_combinations(tokens, frames, features, grid, config, rate, generator("draw", seed)), tokens


@settings(max_examples=60, deadline=None)
@given(
    st.builds(TokenGrid, st.integers(1, 9), st.integers(1, 5), st.integers(1, 5)),
    st.sampled_from(["token", "mixed"]),
    st.integers(4, 17),
    st.floats(0.001, 1.0),
    st.floats(0.01, 1.0),
)
def test_every_combination_holds_k_tokens_a_frame_in_ascending_order(grid, modes, group, rate, frame_ratio):
    combinations, _ = draw(grid, SamplingConfig(group=group, modes=modes, frame_ratio=frame_ratio), rate)
    kept = combinations.kept
    assert kept.shape == (group, tokens_at(rate, grid) * grid.frames)
    assert kept.dtype == torch.int32
    assert bool((kept.diff(dim=1) > 0).all())
    assert int(kept.min()) >= 0
    assert int(kept.max()) < grid.tokens
    per_frame = kept[combinations.modes != Mode.FRAME] // grid.per_frame
    counts = torch.nn.functional.one_hot(per_frame.long(), grid.frames).sum(dim=1)
    assert bool((counts == tokens_at(rate, grid)).all())


def test_mixed_modes_come_as_content_token_frame():
    combinations, _ = draw(TokenGrid(8, 4, 4), SamplingConfig(group=32, modes="mixed"), 1 / 16)
    assert combinations.modes.tolist() == [Mode.CONTENT] + 23 * [Mode.TOKEN] + 8 * [Mode.FRAME]
    assert mode_counts(SamplingConfig(group=6, modes="mixed")) == (1, 3, 2)
    assert mode_counts(SamplingConfig(group=32, modes="token")) == (0, 32, 0)


def test_frame_samples_keep_tokens_of_their_drawn_frames_only():
    grid = TokenGrid(8, 4, 4)
    config = SamplingConfig(group=32, modes="mixed", frame_ratio=0.25)
    combinations, _ = draw(grid, config, 1 / 16)
    is_frame = combinations.modes == Mode.FRAME
    assert not combinations.frames[~is_frame].any()
    assert combinations.frames[is_frame].sum(dim=1).tolist() == 8 * [2]
    owner = (combinations.kept[is_frame] // grid.per_frame).long()
    assert bool(combinations.frames[is_frame].gather(1, owner).all())


def test_the_first_samples_of_token_and_frame_are_the_plain_tops():
    grid = TokenGrid(4, 3, 3)
    config = SamplingConfig(group=8, modes="mixed", frame_ratio=0.5)
    token_scores = torch.randn(grid.tokens, generator=generator("a"))
    frame_scores = torch.tensor([0.1, 5.0, -1.0, 2.0])
    logits = [torch.stack([torch.zeros_like(scores), scores], dim=1) for scores in (token_scores, frame_scores)]
    combinations = sample_combinations(*logits, torch.randn(36, 4), grid, config, 2 / 9, generator("b"))
    expected = token_scores.view(4, 9).topk(2).indices + 9 * torch.arange(4)[:, None]
    assert combinations.kept[1].tolist() == sorted(expected.flatten().tolist())
    first_frame = (combinations.modes == Mode.FRAME).nonzero()[0].item()
    assert combinations.frames[first_frame].tolist() == [False, True, False, True]


def test_drawn_frames_follow_their_enumeration():
    scores = torch.tensor([4.0, 1.0, 0.5, 0.0, -0.5], dtype=torch.float64)
    config = SamplingConfig(max_frame_prob=2.0)
    drawn = draw_frames(scores, 2, 20_001, config, generator("frames"))[1:]
    weights = slow_cap(torch.softmax(scores, dim=0).tolist(), 2.0 / 5)
    assert_follows([frozenset(row) for row in drawn.tolist()], successive(dict(enumerate(weights)), 2))


def blank(explore: float, temperature: float = 1.0) -> Combinations:
    """500 token and about 167 frame samples of a policy that is sure of token 0 of each frame and of frame 0."""
    grid = TokenGrid(4, 3, 3)
    config = SamplingConfig(
        group=668,
        modes="mixed",
        frame_ratio=0.25,
        max_frame_prob=4.0,
        max_group_prob=9.0,
        group_size=1,
        temperature=temperature,
    )
    tokens, frames = torch.zeros(36, 2), torch.zeros(4, 2)
    tokens[::9, 1], frames[0, 1] = 30.0, 30.0
    features = torch.randn(36, 4, generator=generator("features"))
    return sample_combinations(tokens, frames, features, grid, config, 1 / 9, generator("blank"), explore)


def test_a_share_of_the_samples_follows_no_score():
    for explore in (0.0, 0.25, 1.0):
        drawn = blank(explore)
        token, frame = drawn.modes == Mode.TOKEN, drawn.modes == Mode.FRAME
        assert drawn.kept[token][0].tolist() == [0, 9, 18, 27]  # the plain tops stay
        assert drawn.frames[frame][0].tolist() == [True, False, False, False]
        # The policy draws token 0 of a frame in 0.9 of all cases (the cap of a group), chance in 1/9.
        sure = float((drawn.kept[token] % 9 == 0).double().mean())
        assert sure == pytest.approx(0.9 * (1 - explore) + explore / 9, abs=0.04)
        first = float(drawn.frames[frame][:, 0].double().mean())
        assert first == pytest.approx(1 - explore + explore / 4, abs=0.1)


def test_exploring_samples_draw_any_tokens_of_a_frame_alike():
    grid = TokenGrid(1, 2, 2)
    scores = torch.tensor([[0.0, 9.0], [0.0, 3.0], [0.0, 0.0], [0.0, -3.0]])
    drawn = sample_combinations(
        scores, torch.zeros(1, 2), torch.zeros(4, 2), grid, SamplingConfig(group=3001), 0.5, generator("any"), 1.0
    )
    pairs = {frozenset(pair): 1 / 6 for pair in itertools.combinations(range(4), 2)}
    assert_follows([frozenset(row) for row in drawn.kept[1:].tolist()], pairs)


def test_a_high_temperature_draws_more_broadly():
    sure = [float((blank(0.0, temperature).kept[1:501] % 9 == 0).double().mean()) for temperature in (1.0, 20.0, 1e6)]
    assert sure[0] > sure[1] + 0.1 > sure[2] + 0.2
    assert sure[2] == pytest.approx(1 / 9, abs=0.03)


def test_exploration_holds_and_then_falls_to_nothing_at_the_runs_end():
    config = SamplingConfig(explore=0.8, explore_until=0.5)
    assert [explored(config, step / 8) for step in range(9)] == pytest.approx(
        [0.8, 0.8, 0.8, 0.8, 0.8, 0.6, 0.4, 0.2, 0.0]
    )
    assert explored(SamplingConfig(explore=1.0), 1.0) == 1.0
    assert explored(SamplingConfig(), 0.0) == 0.0


def test_enough_frames_are_drawn_to_hold_the_tokens():
    grid = TokenGrid(8, 3, 3)
    assert frames_drawn(SamplingConfig(frame_ratio=0.125), grid, kept=1) == 1
    assert frames_drawn(SamplingConfig(frame_ratio=0.3), grid, kept=1) == 3
    assert frames_drawn(SamplingConfig(frame_ratio=0.125), grid, kept=3) == 3
    assert frames_drawn(SamplingConfig(frame_ratio=0.07), TokenGrid(100, 4, 4), kept=1) == 7  # of 7.000...1


def test_equal_generators_give_equal_combinations_and_others_do_not():
    config = SamplingConfig(group=8, modes="mixed")
    grid = TokenGrid(4, 4, 4)
    first, tokens = draw(grid, config, 0.1)
    again, _ = draw(grid, config, 0.1)
    assert torch.equal(first.kept, again.kept)
    assert torch.equal(first.frames, again.frames)
    other = sample_combinations(
        tokens, torch.zeros(4, 2), torch.randn(64, 8), grid, config, 0.1, generator("elsewhere")
    )
    assert not torch.equal(first.kept, other.kept)


def test_sampling_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    draw(TokenGrid(4, 4, 4), SamplingConfig(group=8, modes="mixed"), 0.1)
    assert torch.equal(before, torch.random.get_rng_state())


def test_rates_and_tokens_per_frame_convert_exactly():
    grid = TokenGrid(2, 14, 14)
    assert all(tokens_at(rate_of(k, grid), grid) == k for k in range(1, 197))
    assert tokens_at(0.02, grid) == 4
    assert tokens_at(1e-6, grid) == 1
    with pytest.raises(UserError, match="a frame has 196"):
        rate_of(197, grid)


def test_tokens_of_a_step_are_drawn_evenly_from_the_configured_ones():
    config = SamplingConfig(tokens_per_frame=(1, 2, 3))
    draws = generator("step")
    assert_follows([step_tokens(config, draws) for _ in range(3000)], {1: 1 / 3, 2: 1 / 3, 3: 1 / 3})
    assert step_tokens(SamplingConfig(tokens_per_frame=()), draws) is None


def test_diverged_logits_are_an_error_that_names_the_remedy():
    logits = torch.zeros(8, 2)
    logits[3, 1] = torch.nan
    with pytest.raises(UserError, match="lower optimizer"):
        sample_combinations(
            logits, torch.zeros(2, 2), torch.zeros(8, 4), TokenGrid(2, 2, 2), SamplingConfig(), 0.5, generator(0)
        )
