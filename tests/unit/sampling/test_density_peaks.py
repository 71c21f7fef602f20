import math

import pytest
import torch

from cacovid.sampling import density_peaks
from cacovid.sampling.density_peaks import diverse_in_unions, diverse_per_frame, peak_scores, squared_distances
from cacovid.seeding import generator


def slow_scores(rows: torch.Tensor) -> list[float]:
    """log(density * distance to the nearest denser row), one row at a time."""
    rows = rows.double()
    size, width = rows.shape
    squared = [[float((rows[i] - rows[j]).square().sum()) / width for j in range(size)] for i in range(size)]
    density = []
    for i in range(size):
        nearest = sorted(squared[i][j] for j in range(size) if j != i)[:4]
        density.append(-sum(nearest) / len(nearest))
    scores = []
    for i in range(size):
        denser = [squared[i][j] for j in range(size) if density[j] > density[i]]
        scores.append(density[i] + math.log(math.sqrt(min(denser) if denser else max(squared[i]))))
    return scores


def test_scores_equal_the_slow_reference():
    features = torch.randn(3, 9, 12, generator=generator("peaks"))
    fast = peak_scores(squared_distances(features, features))
    for frame in range(3):
        assert fast[frame].tolist() == pytest.approx(slow_scores(features[frame]), abs=1e-4)


def test_choice_within_frames_equals_the_slow_reference():
    features = torch.randn(4, 10, 12, generator=generator("frames"))
    chosen = diverse_per_frame(features, 3)
    for frame in range(4):
        ranking = sorted(range(10), key=slow_scores(features[frame]).__getitem__, reverse=True)
        assert set(chosen[frame].tolist()) == set(ranking[:3])


@pytest.mark.parametrize("part", [1, 1 << 24])  # one sample at a time, all at once
def test_choice_over_unions_equals_the_slow_reference(part, monkeypatch):
    monkeypatch.setattr(density_peaks, "PART", part)
    features = torch.randn(6, 5, 12, generator=generator("unions"))
    drawn = torch.tensor([[0, 3, 5], [1, 3, 4], [0, 1, 5]])
    chosen = diverse_in_unions(features, drawn, 7)
    for row, frames in zip(chosen.tolist(), drawn.tolist(), strict=True):
        tokens = [frame * 5 + cell for frame in frames for cell in range(5)]
        scores = slow_scores(features.flatten(0, 1)[tokens])
        ranking = sorted(range(15), key=scores.__getitem__, reverse=True)
        assert set(row) == {tokens[i] for i in ranking[:7]}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_one_of_each_cluster_is_chosen_whatever_the_features_scale(scale):
    draw = generator("clusters")
    centres = torch.randn(3, 8, generator=draw) * 20
    rows = centres.repeat_interleave(6, dim=0) + 0.1 * torch.randn(18, 8, generator=draw)
    chosen = diverse_per_frame(scale * rows[None], 3)[0]
    if scale <= 1:  # far apart, density alone decides: that is the method's own limit
        assert sorted((chosen // 6).tolist()) == [0, 1, 2]
    assert len(set(chosen.tolist())) == 3


def test_a_token_is_no_neighbour_of_its_own():
    """Counted among the nearest four, it would make the pair at 0 and 1 as dense as the five around 10."""
    rows = torch.tensor([[0.0], [1.0], [10.0], [10.5], [11.0], [11.5], [12.0]])
    alone = peak_scores(squared_distances(rows[None], rows[None]))[0]
    nearest = [(10.5 - 10) ** 2, (11 - 10) ** 2, (11.5 - 10) ** 2, (12 - 10) ** 2]
    assert float(alone[2]) == pytest.approx(-sum(nearest) / 4 + math.log(0.5), abs=1e-4)


def test_the_densest_token_takes_its_own_largest_distance():
    rows = torch.tensor([[0.0], [1.0], [1.5], [2.0], [2.5], [3.0], [9.0]])  # 2 is the densest, 7 from the farthest
    scores = peak_scores(squared_distances(rows[None], rows[None]))[0]
    density = -(0.5**2 + 0.5**2 + 1 + 1) / 4
    assert float(scores[3]) == pytest.approx(density + math.log(7.0), abs=1e-4)


def test_equal_tokens_are_chosen_without_repetition():
    chosen = diverse_per_frame(torch.ones(2, 6, 4), 4)
    assert all(len(set(row)) == 4 for row in chosen.tolist())


def test_of_two_equal_densest_tokens_the_lower_index_alone_is_a_peak():
    rows = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
    assert diverse_per_frame(rows[None], 4)[0].sort().values.tolist() == [0, 1, 3, 4]


def test_a_single_token_per_frame_is_chosen():
    assert diverse_per_frame(torch.randn(3, 1, 4), 1).tolist() == [[0], [0], [0]]
