"""EVS, VidCom2, VisionZip, fewer frames and lower resolution on cases worked by hand."""

import math

import pytest
import torch
from torch import Tensor

from cacovid.errors import NotDefined
from cacovid.methods.baselines.evs import EVS
from cacovid.methods.baselines.fewer_frames import FewerFrames
from cacovid.methods.baselines.lower_resolution import LowerResolution, centres, smaller_grid
from cacovid.methods.baselines.uniform import UniformTokens
from cacovid.methods.baselines.vidcom2 import VidCom2, frame_budgets, likeness
from cacovid.methods.baselines.visionzip import VisionZip
from cacovid.records import TokenGrid
from tests.support.evaluation_cases import made_case


def angles(*degrees: float) -> Tensor:
    """Unit vectors in the plane."""
    radians = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([radians.cos(), radians.sin()], dim=1).float()


# Three frames of 1x2 tokens; changes since the frame before: 10 and 90 degrees, then 30 and 0.
TURNING = angles(0, 0, 10, 90, 40, 90)
LINE = TokenGrid(3, 1, 2)


def test_evs_keeps_the_first_frame_and_what_turned_most() -> None:
    case = made_case(TURNING, LINE)
    assert EVS().select(case, 1 / 3).tolist() == [0, 1]
    assert EVS().select(case, 0.5).tolist() == [0, 1, 3]  # 90 degrees
    assert EVS().select(case, 4 / 6).tolist() == [0, 1, 3, 4]  # then 30
    assert EVS().select(case, 5 / 6).tolist() == [0, 1, 2, 3, 4]  # then 10
    with pytest.raises(NotDefined, match="1 tokens are fewer than its 2"):
        EVS().select(case, 0.2)


def test_evs_on_a_still_clip_keeps_the_beginning() -> None:
    still = torch.eye(4).repeat(3, 1)
    assert EVS().select(made_case(still, TokenGrid(3, 2, 2)), 0.5).tolist() == [0, 1, 2, 3, 4, 5]


def test_vidcom2_gives_unusual_frames_more_and_keeps_unusual_tokens() -> None:
    """Frames 0 and 1 hold the clip's common token and one outlier each, frame 2 an outlier twice."""
    tokens = angles(0, 0, 0, 60, 0, 0, 0, 60, 180, 180, 180, 240)
    # channels 0 and 1 vary, the constant ones that are added do not: they are what VidCom2 would keep of 8
    case = made_case(torch.cat([tokens, 5 * tokens], dim=1), TokenGrid(3, 1, 4))
    kept = VidCom2().select(case, 0.5).tolist()
    assert len(kept) == 6
    assert {3, 7, 8, 9, 10, 11} >= set(kept) - {0, 4}
    assert {3, 7, 11} <= set(kept)


def test_vidcom2_reads_the_channels_that_vary_least() -> None:
    wild = torch.tensor([[9.0], [-9.0], [5.0], [7.0]])
    calm = torch.tensor([[1.0], [1.0], [1.0], [-1.0]])
    kept = VidCom2().select(made_case(torch.cat([wild, calm], dim=1), TokenGrid(1, 2, 2)), 0.25)
    assert kept.tolist() == [3]  # the only one unlike the others in the second channel


def test_vidcom2_likeness_and_frame_budgets_by_hand() -> None:
    squared = 0.5
    expected = sum(math.exp(-squared / (2 * alpha)) for alpha in (1 / 8, 1 / 4, 1 / 2, 1, 2))
    found = likeness(torch.tensor([[[0.5, 0.5]]]), torch.zeros(2))
    assert float(found) == pytest.approx(expected)
    # Scores 0.01 apart are one unit of temperature apart: shares 1/(1+e) = 0.269 and 0.731, mean 0.5.
    # Rates 0.25 * (1 -+ 0.231) of 16 tokens: 3.08 and 4.92.
    assert frame_budgets(torch.tensor([0.0, 0.01]), 0.25, 16).tolist() == [3, 5]
    # A frame that stands out takes all: 0.25 * (1 + 1 - 0.5) and 0.25 * 0.5 of 16.
    assert frame_budgets(torch.tensor([0.0, 1.0]), 0.25, 16).tolist() == [2, 6]
    assert frame_budgets(torch.tensor([0.0, 1.0]), 0.01, 16).tolist() == [1, 1]


def test_vidcom2_makes_up_the_budget_exactly() -> None:
    """Frames of one kind have one budget: of 5 in 12 it is 4 * 5 / 12 = 1.67, which rounds to 2 each, one too many."""
    frame = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    case = made_case(frame.repeat(3, 1), TokenGrid(3, 2, 2))
    few, more = VidCom2().select(case, 3 / 12), VidCom2().select(case, 5 / 12)
    assert (few // 4).tolist() == [0, 1, 2]
    assert len(set((few % 4).tolist())) == 1
    assert torch.bincount(more // 4).tolist() == [2, 2, 1]  # of equal ones the last is dropped
    four = VidCom2().select(case, 4 / 12)  # 1.33 rounds to 1 each, one too few: the first of the next best
    assert torch.bincount(four // 4).tolist() == [2, 1, 1]
    with pytest.raises(NotDefined, match="2 tokens are fewer than 3 frames"):
        VidCom2().select(case, 2 / 12)


def test_visionzip_merges_what_is_not_dominant_into_the_nearest_target() -> None:
    """One frame of 8, five to keep: 5 * 10/64 rounds to one target, 4 are dominant."""
    features = torch.arange(8.0)[:, None].repeat(1, 2)
    received = torch.tensor([0.0, 9.0, 1.0, 8.0, 0.0, 7.0, 0.0, 6.0])
    case = made_case(features, TokenGrid(1, 2, 4), received=received, keys=angles(0, 0, 10, 0, 20, 0, 30, 0))
    reduction = VisionZip().reduce(case, 5 / 8)
    assert reduction.keep.tolist() == [0, 1, 3, 5, 7]
    assert reduction.rows is not None
    assert reduction.rows[:, 0].tolist() == [0 + (2 + 4 + 6) / 3, 1, 3, 5, 7]  # itself plus the mean of the assigned


def test_visionzip_assigns_by_keys() -> None:
    """Sixteen tokens of one frame, thirteen to keep: 2 contextual. Of the others 0 1 2 3 4 every second is a target."""
    received = torch.ones(16).index_fill(0, torch.arange(5), 0.0)
    keys = angles(0, 85, 90, 5, 80, *([0] * 11))
    case = made_case(torch.arange(16.0)[:, None].repeat(1, 2), TokenGrid(1, 4, 4), received=received, keys=keys)
    reduction = VisionZip().reduce(case, 13 / 16)
    assert reduction.keep.tolist() == [0, 2, *range(5, 16)]
    assert reduction.rows is not None
    assert reduction.rows[:3, 0].tolist() == [0 + 3, 2 + (1 + 4) / 2, 5]


def test_visionzip_spreads_few_tokens_over_the_frames_and_needs_the_towers_attention() -> None:
    received = torch.tensor([0.1, 0.2, 0.4, 0.3, 0.5, 0.5, 0.1, 0.9])
    case = made_case(angles(*range(8)), TokenGrid(4, 1, 2), received=received)
    assert VisionZip().reduce(case, 0.5).keep.tolist() == [1, 2, 4, 7]  # ties go to the lower index
    assert VisionZip().reduce(case, 0.25).keep.tolist() == [2, 7]
    with pytest.raises(NotDefined, match="not recorded"):
        VisionZip().reduce(made_case(angles(*range(8)), TokenGrid(4, 1, 2)), 0.5)


def test_fewer_frames_keeps_whole_ones() -> None:
    case = made_case(torch.ones(24, 2), TokenGrid(6, 2, 2))
    assert FewerFrames().reduce(case, 0.5).keep.tolist() == [*range(4, 8), *range(12, 16), *range(20, 24)]
    assert len(FewerFrames().reduce(case, 0.45).keep) == 8  # of 10 tokens
    with pytest.raises(NotDefined, match="3 tokens are less than a frame of 4"):
        FewerFrames().reduce(case, 0.15)


def test_fewer_frames_of_single_tokens_are_uniform_ones() -> None:
    case = made_case(torch.ones(12, 2), TokenGrid(12, 1, 1))
    assert torch.equal(FewerFrames().reduce(case, 0.4).keep, UniformTokens().select(case, 0.4))


def test_lower_resolution_averages_blocks() -> None:
    features = torch.arange(16.0)[:, None].repeat(1, 2)
    case = made_case(features, TokenGrid(1, 4, 4), deepstack=(features * 10,))
    reduction = LowerResolution().reduce(case, 0.25)
    assert reduction.keep.tolist() == [5, 7, 13, 15]  # row 1 or 3, column 1 or 3
    assert reduction.rows is not None
    assert reduction.rows[:, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert reduction.deepstack is not None
    assert reduction.deepstack[0][:, 1].tolist() == [25, 45, 105, 125]
    applied = reduction.applied(case.encoded)
    assert applied.features[5, 0] == 2.5
    assert applied.features[6, 0] == 6


@pytest.mark.parametrize(
    ("budget", "rows", "columns"), [(2, 1, 1), (8, 2, 2), (18, 3, 3), (50, 5, 5), (71, 5, 6), (72, 6, 6)]
)
def test_lower_resolution_keeps_the_shape_as_far_as_it_can(budget: int, rows: int, columns: int) -> None:
    assert smaller_grid(TokenGrid(2, 6, 6), budget) in (
        TokenGrid(2, rows, columns),
        TokenGrid(2, columns, rows),
    )


def test_lower_resolution_of_less_than_a_token_a_frame_is_not_defined() -> None:
    assert centres(5, 2).tolist() == [1, 3]
    with pytest.raises(NotDefined, match="1 tokens are fewer than 2 frames"):
        smaller_grid(TokenGrid(2, 6, 6), 1)
