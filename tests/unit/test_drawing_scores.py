"""The figures of one clip: frame scores along time, token scores over the frames."""

import numpy as np
import pytest
import torch

from cacovid.drawing.scores import MAPS, ScoredClip, draw_frame_scores, draw_token_scores
from cacovid.records import TokenGrid


def clip_of(count: int, size: tuple[int, int], grid: TokenGrid, scores: torch.Tensor | None = None) -> ScoredClip:
    frames = np.zeros((count, *size, 3), np.uint8)
    frames[:, ..., 0] = (np.arange(count) * 255 // max(1, count - 1))[:, None, None]
    token_scores = torch.randn(grid.tokens) if scores is None else scores
    kept = token_scores.topk(max(1, grid.tokens // 10)).indices.sort().values
    return ScoredClip(frames, [0.5 * n for n in range(count)], grid, token_scores, torch.randn(grid.frames), kept)


@pytest.mark.parametrize(
    ("count", "size", "grid"),
    [
        (1, (9, 301), TokenGrid(1, 3, 5)),
        (16, (160, 90), TokenGrid(8, 26, 14)),  # two frames to a step, portrait
        (200, (18, 32), TokenGrid(200, 2, 2)),  # more frames than either figure shows
    ],
)
@pytest.mark.parametrize("draw", [draw_frame_scores, draw_token_scores])
def test_any_clip_is_drawn_on_a_page(count: int, size: tuple[int, int], grid: TokenGrid, draw) -> None:
    picture = draw(clip_of(count, size, grid), "what does $5 or $6 buy? " * 20)
    assert picture.width <= 1700
    assert picture.height <= 4000
    assert len(np.unique(np.asarray(picture).reshape(-1, 3), axis=0)) > 20


def test_the_frames_above_the_curve_stand_in_order_and_apart() -> None:
    """Twelve of the hundred, brighter from left to right, with white between them."""
    picture = np.asarray(draw_frame_scores(clip_of(100, (60, 60), TokenGrid(100, 2, 2)))).astype(int)
    row = picture[40]
    red = (row[:, 1] < 10) & (row[:, 2] < 10)
    edges = np.flatnonzero(np.diff(red.astype(int)) == 1)
    assert len(edges) == 12
    levels = [row[edge + 20, 0] for edge in edges]
    assert levels == sorted(levels)
    assert levels[0] < 30
    assert levels[-1] > 225


def test_high_scores_are_bright_and_retained_tokens_have_a_border() -> None:
    scores = torch.tensor([-1.0, -1.0, -1.0, 1.0])
    picture = np.asarray(draw_token_scores(clip_of(1, (60, 60), TokenGrid(1, 2, 2), scores))).astype(int)
    left, right = picture[330:390, 60:120], picture[330:390, 260:320]  # the middles of the lower cells
    assert right.sum() > left.sum() + 100 * left.size
    assert (picture[320, 210:213] == 255).all()  # between them


def test_scores_that_are_all_equal_have_a_scale() -> None:
    draw_token_scores(clip_of(2, (20, 20), TokenGrid(2, 2, 2), torch.zeros(8)))


def test_a_heat_map_has_at_most_so_many_frames() -> None:
    heights = [
        draw_token_scores(clip_of(count, (20, 20), TokenGrid(count, 1, 1))).height for count in (MAPS, MAPS + 1, 150)
    ]
    assert heights[0] == heights[1] == heights[2]
