"""FlashVID, HoliTom, PruneVID, FrameFusion and FastV on cases worked by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cacovid.errors import NotDefined
from cacovid.methods.baselines.fastv import FastV, FastVBehind
from cacovid.methods.baselines.flashvid import FlashVID, diverse, linked, pull, segment_borders
from cacovid.methods.baselines.framefusion import FrameFusion, Fusing
from cacovid.methods.baselines.holitom import HoliTom, MergeHalf, averaged_in_turn, best_windows
from cacovid.methods.baselines.prunevid import PruneVID, scene_borders, still_places
from cacovid.methods.inside_steps import KeepMostAttended
from cacovid.methods.sharing import cut_layer, evenly, share_out, stages
from cacovid.methods.similarity import density_peaks, most_alike
from cacovid.records import TokenGrid
from tests.support.evaluation_cases import made_case
from tests.support.inside_views import made_view
from tests.unit.methods.test_rivals_before import TURNING, angles

# ---------------------------------------------------------------------------------------- budgets


def test_stages_are_the_authors_at_their_depth() -> None:
    # FlashVID's own example: a mean of 10 % is 12.5 % up to layer 20 of 28, then 3.75 %.
    assert stages(1_000, 10_000, 28, 20, 0.3) == (20, 1250, 375)
    # HoliTom's 10 % and 5 % from layer 18 are a mean of 8.2 %.
    plan = stages(821, 10_000, 28, 18, 0.5)
    assert (plan.before, plan.behind) == (999, 500)
    # PruneVID keeps 40 % from layer 10: 1.63 times the budget before it.
    assert stages(100, 10_000, 28, 10, 0.4)[1:] == (162, 65)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.integers(0, 200), st.integers(2, 40), st.floats(0.05, 0.95), st.data())
def test_stages_miss_the_mean_by_less_than_a_token(
    budget: int, more: int, layers: int, share: float, data: st.DataObject
) -> None:
    layer = data.draw(st.integers(1, layers - 1))
    plan = stages(budget, budget + more, layers, layer, share)
    assert 1 <= plan.behind <= plan.before <= budget + more
    mean = (layer * plan.before + (layers - layer) * plan.behind) / layers
    assert budget - 1 < mean <= budget + 1e-9


def test_cuts_lie_at_the_published_depth_and_behind_deepstack() -> None:
    assert [cut_layer(published, 28, 0) for published in (2, 10, 18, 20)] == [2, 10, 18, 20]
    assert [cut_layer(published, 4, 0) for published in (2, 10, 18, 20)] == [1, 1, 3, 3]
    assert cut_layer(2, 36, 3) == 3
    with pytest.raises(NotDefined, match="behind 2 of its 2"):
        cut_layer(2, 2, 2)


def test_shares_are_largest_remainders() -> None:
    assert share_out(torch.tensor([5, 3, 2]), 5).tolist() == [3, 1, 1]  # 2.5, 1.5, 1.0: the lower index wins the tie
    assert share_out(torch.tensor([4, 0, 4]), 9).tolist() == [4, 0, 4]
    assert evenly(5, 4).tolist() == [1, 1, 2, 1]


def test_candidates_are_taken_by_likeness_as_room_allows() -> None:
    likeness, savings = torch.tensor([0.9, 0.95, 0.5, 0.85]), torch.tensor([2, 3, 1, 1])
    alike = likeness > 0.8
    assert most_alike(likeness, alike, savings, 9).tolist() == [True, True, False, True]
    assert most_alike(likeness, alike, savings, 5).tolist() == [True, True, False, False]
    assert most_alike(likeness, alike, savings, 4).tolist() == [False, True, False, False]  # the threshold rose


# ------------------------------------------------------------------------------------- clustering


def test_density_peaks_find_two_clumps() -> None:
    line = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [5.2]])
    target = density_peaks(line, 2)
    assert len(set(target[:3].tolist())) == len(set(target[3:].tolist())) == 1
    assert int(target[0]) in (0, 1, 2)
    assert int(target[3]) in (3, 4, 5)
    assert density_peaks(line, 6).tolist() == list(range(6))
    assert density_peaks(torch.ones(4, 2), 1).tolist() == [0] * 4  # ties go to the lower index


# --------------------------------------------------------------------------------------- FlashVID


def test_flashvid_cuts_where_frames_change_and_makes_eight_segments() -> None:
    assert segment_borders(angles(*range(0, 20, 2))).sum() == 7  # ten frames that hardly change
    # Cosines of 60 degrees are 0.5; three frames cannot have eight segments.
    assert segment_borders(angles(0, 0, 60)).tolist() == [True, True]
    turns = [0, 60, 120, 180, 240, 300, 0, 60, 120, 120, 120]
    assert segment_borders(angles(*turns)).tolist() == [True] * 8 + [False] * 2


def test_flashvid_pull_by_hand() -> None:
    """Two frames of their own segments: relevance is the dot product with the frame's mean."""
    frames = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 0.0]]])
    received = torch.tensor([[0.1, 0.3], [0.5, 0.5]])
    found = pull(frames, received)
    # Frame 0: mean (0.5, 0.5), relevance 0.5 each, 1 - cosine = 1 off the diagonal.
    torch.testing.assert_close(found[0], torch.tensor([[0.0, 0.15], [0.05, 0.0]]))
    # Frame 1: mean (1, 0), relevance 2 and 0; a zero row has cosine 0 with all, itself too.
    torch.testing.assert_close(found[1], torch.tensor([[0.0, 0.0], [1.0, 0.0]]))


def test_flashvid_chooses_by_max_min() -> None:
    distances = torch.tensor([[[0.0, 2.0, 9.0], [5.0, 0.0, 3.0], [6.0, 4.0, 0.0]]])
    # Second smallest of the columns: 5, 2, 3: token 0; distances from it: 2 to token 1, 9 to token 2.
    assert diverse(distances, torch.tensor([1])).tolist() == [[True, False, False]]
    assert diverse(distances, torch.tensor([2])).tolist() == [[True, False, True]]
    assert diverse(distances.repeat(3, 1, 1), torch.tensor([0, 3, 1])).sum(dim=1).tolist() == [0, 3, 1]


def test_flashvid_links_into_trees() -> None:
    rows = angles(0, 90, 20, 90, 40, 0).view(3, 2, 2)  # cos 20 = 0.94, cos 40 = 0.77
    nobody = torch.zeros(3, 2, dtype=torch.bool)
    assert linked(rows, nobody, 1).tolist() == [0, 1, 0, 1, 0, 0]  # token 5 goes by way of token 2
    # Four trees: the closest two of four links remain, 90-90 (1.0) and one of the 20 degrees, the lower index.
    assert linked(rows, nobody, 4).tolist() == [0, 1, 0, 1, 4, 5]
    chosen = torch.tensor([[False, False], [True, False], [False, False]])
    assert linked(rows, chosen, 1).tolist() == [0, 1, 2, 1, 4, 5]  # the chosen one has no child


def test_flashvid_keeps_selected_rows_and_averages_trees_of_equal_ones() -> None:
    features = angles(30).repeat(4, 1)
    case = made_case(features, TokenGrid(4, 1, 1), received=torch.tensor([0.1, 0.2, 0.3, 0.4]))
    reduction = FlashVID(28).reduce(case, 0.75)
    assert stages(3, 4, 28, 20, 0.3) == (20, 3, 3)
    # 2 selected, evenly frames 1 and 3; frames 0 and 2 are trees of their own, of which one goes: ties to the first.
    assert reduction.keep.tolist() == [0, 1, 3]
    torch.testing.assert_close(reduction.applied(case.encoded).features, features)
    wide = made_case(angles(*range(0, 160, 10)), TokenGrid(4, 2, 2), received=torch.ones(16) / 4)
    found = FlashVID(28).reduce(wide, 0.5)
    assert len(found.keep) == stages(8, 16, 28, 20, 0.3).before == 10
    assert found.inside == KeepMostAttended(20, 3)


# ---------------------------------------------------------------------------------------- HoliTom


def test_holitom_windows_save_most() -> None:
    # Places: one that never changes, one that changes behind frame 1 of 4. One window of 4 saves 3; windows of 2 and 2
    # save 1 * 2 each.
    assert best_windows(torch.tensor([[True, True], [True, False], [True, True]])) == [(0, 2), (2, 4)]
    assert best_windows(torch.tensor([[True, False]] * 3)) == [(0, 4)]
    assert best_windows(torch.zeros(2, 3, dtype=torch.bool)) == [(0, 3)]  # nothing to save: the longest wins
    assert best_windows(torch.zeros(0, 3, dtype=torch.bool)) == [(0, 1)]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=5))
def test_holitom_windows_agree_with_trying_all(still: list[list[bool]]) -> None:
    frames = len(still) + 1

    def saved(first: int, end: int) -> int:
        return (end - first - 1) * sum(all(row[place] for row in still[first : end - 1]) for place in range(3))

    def best(first: int) -> int:
        if first == frames:
            return 0
        return max(saved(first, end) + best(end) for end in range(first + 1, frames + 1))

    assert sum(saved(*window) for window in best_windows(torch.tensor(still))) == best(0)


def test_holitom_averages_still_places_and_keeps_attended_ones() -> None:
    """Two frames of two places: the first stands still up to 8 degrees, the second turns by 90."""
    features = angles(0, 0, 8, 90)
    case = made_case(features, TokenGrid(2, 1, 2), received=torch.tensor([0.1, 0.2, 0.1, 0.7]))
    reduction = HoliTom(28).reduce(case, 2.5 / 4)  # 2 tokens as mean; 2 at the input
    assert stages(2, 4, 28, 18, 0.5) == (18, 2, 2)
    # Groups: the still place (1), the moving tokens of frames 0 and 1 (1 each); 2 of 3 go to the lower indices.
    assert reduction.keep.tolist() == [0, 1]
    assert reduction.rows is not None
    torch.testing.assert_close(reduction.rows[0], features[[0, 2]].mean(dim=0))


def test_holitom_merges_in_turn() -> None:
    merge = averaged_in_turn(torch.tensor([1, 3]), torch.tensor([1, 1, 1, 3, 3]))
    rows = torch.tensor([[8.0], [16.0], [0.0], [10.0], [20.0]])
    # Token 1: (8 + 16) / 2 = 12, then (0 + 12) / 2 = 6. Token 3: (20 + 10) / 2 = 15.
    assert merge.rows(rows).flatten().tolist() == [6.0, 15.0]
    hidden = angles(0, 90, 80, 10)
    view = made_view(18, [0.5, 0.4, 0.1, 0.2], hidden=hidden)
    step = MergeHalf(18, 2).step(view)
    assert step is not None
    assert step.target.tolist() == [0, 1, 1, 0]
    torch.testing.assert_close(step.rows(hidden), torch.stack([hidden[[0, 3]].mean(0), hidden[[1, 2]].mean(0)]))
    assert MergeHalf(18, 2).step(made_view(17, [0.5] * 4)) is None
    assert MergeHalf(18, 4).step(view) is None


# --------------------------------------------------------------------------------------- PruneVID


def test_prunevid_scenes_are_runs_of_one_cluster() -> None:
    assert scene_borders(angles(0, 1, 2, 3, 90, 91, 92, 93)).tolist() == [
        False,
        False,
        False,
        True,
        False,
        False,
        False,
    ]
    assert scene_borders(angles(0, 90)).tolist() == [False]  # int(0.25 * 2) = 0 clusters: one


def test_prunevid_still_places_by_mean_pairwise_cosine() -> None:
    # Place 0: 0, 30, 60 degrees: mean of 0.866, 0.866, 0.5 = 0.744. Place 1: 0, 20, 40: 0.94, 0.94, 0.766 = 0.881.
    frames = angles(0, 0, 30, 20, 60, 40).view(3, 2, 2)
    assert still_places(frames, [(0, 3)], 99).tolist() == [[False, True]]
    assert still_places(frames, [(0, 2), (2, 3)], 99).tolist() == [[True, True], [False, False]]
    assert still_places(frames, [(0, 2), (2, 3)], 1).tolist() == [[False, True], [False, False]]  # room for the stiller


def test_prunevid_reduces_a_still_place_to_one_token() -> None:
    """One scene of three frames: place 1 stands still, place 0 does not; 4 tokens before the cut are all rows left."""
    features = angles(0, 0, 60, 20, 120, 40)
    method = PruneVID(28)
    case = made_case(features, TokenGrid(3, 1, 2))
    reduction = method.reduce(case, 0.5)
    assert stages(3, 6, 28, 10, 0.4).before == 4
    assert reduction.keep.tolist() == [0, 1, 2, 4]
    assert reduction.rows is not None
    torch.testing.assert_close(reduction.rows[1], features[[1, 3, 5]].mean(dim=0))
    assert reduction.inside == KeepMostAttended(10, 2, by_text=True)


# ------------------------------------------------------------------------------------ FrameFusion


def test_framefusion_averages_runs_into_their_first() -> None:
    """Place 0 turns by 10 then 30 degrees (both alike), place 1 by 90 then 0: a run of three, and of two."""
    step = Fusing(1, 2, 28, at_mean=True)
    merge = step.fused(TURNING, torch.arange(6))
    assert merge.target.tolist() == [0, 1, 0, 3, 0, 3]
    torch.testing.assert_close(merge.rows(TURNING)[0], TURNING[[0, 2, 4]].mean(dim=0))
    # Room for one: the most alike pair, which is the one that did not change.
    assert Fusing(5, 2, 28, at_mean=True).fused(TURNING, torch.arange(6)).target.tolist() == [0, 1, 2, 3, 4, 3]
    # What is left is compared with what is left of its place.
    assert step.fused(TURNING[[0, 1, 5]], torch.tensor([0, 1, 5])).target.tolist() == [0, 1, 2]
    assert not step.merging  # none of three is alike


def test_framefusion_spends_the_mean_exactly() -> None:
    features = angles(0, 0, 90, 90, 180, 180)  # nothing merges
    case = made_case(features, LINE_OF_THREE)
    reduction = FrameFusion(28).reduce(case, 2 / 6)
    assert len(reduction.keep) == 6
    assert reduction.inside is not None
    # Layer 0 saw 6 of 2 * 28 = 56 tokens: 50 over 27 layers, 1 each.
    cut = reduction.inside.step(made_view(1, [0.1, 0.2, 0.9, 0.3, 0.3, 0.1]))
    assert cut is not None
    assert cut.kept.tolist() == [2]
    assert reduction.inside.step(made_view(2, [1.0], counts=(6, 1))) is None
    with pytest.raises(NotDefined, match="1 of 4 layers see 6 of 6 tokens, too many for a mean of 2"):
        FrameFusion(4).reduce(case, 2 / 6)


def test_framefusion_merges_at_the_input_what_is_still() -> None:
    case = made_case(angles(0, 50).repeat(3, 1), LINE_OF_THREE)
    reduction = FrameFusion(4).reduce(case, 2 / 6)  # a clip that merging alone brings to the budget
    assert reduction.keep.tolist() == [0, 1]
    assert reduction.inside is not None
    assert reduction.inside.step(made_view(1, [0.5, 0.5], layers=4)) is None


LINE_OF_THREE = TokenGrid(3, 1, 2)

# ------------------------------------------------------------------------------------------ FastV


def test_fastv_pays_for_the_layers_that_see_everything() -> None:
    case = made_case(torch.ones(100, 2), TokenGrid(4, 5, 5))
    reduction = FastV(28).reduce(case, 0.1)
    # 280 token-layers, 200 of them in layers 0 and 1: 80 over 26 layers.
    assert reduction.inside == KeepMostAttended(2, 3)
    assert len(reduction.keep) == 100
    assert FastVBehind(28).reduce(case, 0.1).inside == KeepMostAttended(2, 10)
    with pytest.raises(NotDefined, match=r"2 of 28 layers see all tokens, a mean of at least 7\.1%"):
        FastV(28).reduce(case, 0.07)


def test_the_most_attended_stay_and_ties_go_to_the_lower_index() -> None:
    view = made_view(2, [0.1, 0.3, 0.3, 0.2, 0.3], text_attention=[0.9, 0.1, 0.1, 0.1, 0.8])
    for step, kept in ((KeepMostAttended(2, 2), [1, 2]), (KeepMostAttended(2, 2, by_text=True), [0, 4])):
        found = step.step(view)
        assert found is not None
        assert found.kept.tolist() == kept
        assert found.only_drops
    assert KeepMostAttended(3, 2).step(view) is None
    assert KeepMostAttended(2, 5).step(view) is None
