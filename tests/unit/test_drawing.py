"""The contact sheet of kept tokens."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cacovid.drawing.kept import draw_kept_tokens
from cacovid.drawing.sheet import KEPT, save_image
from cacovid.records import TokenGrid


def white(count: int, height: int, width: int) -> np.ndarray:
    return np.full((count, height, width, 3), 255, np.uint8)


@pytest.mark.parametrize(
    ("frames", "grid"),
    [
        ((8, 96, 96), TokenGrid(8, 6, 6)),
        ((32, 90, 160), TokenGrid(32, 14, 14)),
        ((16, 160, 90), TokenGrid(8, 26, 14)),  # two frames to a step, portrait
        ((1, 7, 301), TokenGrid(1, 3, 5)),
        ((3, 20, 20), TokenGrid(3, 40, 40)),  # more cells than pixels
        ((5, 40, 40), TokenGrid(5, 1, 1)),
    ],
)
def test_any_grid_and_frame_size_is_drawn(frames: tuple[int, int, int], grid: TokenGrid) -> None:
    sheet = draw_kept_tokens(white(*frames), grid, torch.arange(0, grid.tokens, 3), lines=["what?"])
    assert sheet.width <= 5000
    assert sheet.height <= 5000
    outline = (np.asarray(sheet) == KEPT).all(axis=2)
    assert outline.any()


def test_the_sheet_fills_a_page() -> None:
    sheet = draw_kept_tokens(white(6, 50, 100), TokenGrid(6, 2, 2), torch.tensor([0]))
    assert sheet.width == 4 * 384 + 3 * 12 + 2 * 18
    assert sheet.height == 2 * (192 + 32) + 12 + 2 * 18


def test_kept_cells_are_bright_and_dropped_cells_dim() -> None:
    sheet = np.asarray(draw_kept_tokens(white(2, 60, 60), TokenGrid(2, 2, 2), torch.tensor([1, 6])))
    first, second = sheet[18:402, 18:402], sheet[18:402, 414:798]
    assert (first[80:110, 280:310] == 255).all()  # token 1: upper right of frame 0
    assert (second[280:310, 80:110] == 255).all()  # token 6: lower left of frame 1
    for dropped in (first[80:110, 80:110], first[280:310, 80:110], second[80:110, 280:310]):
        assert dropped.max() < 140


def test_budget_bars_follow_the_tokens_of_each_frame() -> None:
    kept = torch.tensor([0, 1, 2, 3, 4, 5])  # 4 of frame 0, 2 of frame 1, none of frame 2
    sheet = np.asarray(draw_kept_tokens(white(3, 60, 60), TokenGrid(3, 2, 2), kept))
    bar = sheet[18 + 384 + 22 + 4]
    lengths = [(bar[left : left + 384] == KEPT).all(axis=1).sum() for left in (18, 414, 810)]
    assert lengths == [384, 192, 0]


def test_long_questions_are_wrapped_and_make_room() -> None:
    short = draw_kept_tokens(white(2, 60, 60), TokenGrid(2, 2, 2), torch.tensor([1]), lines=["what?"])
    long = draw_kept_tokens(white(2, 60, 60), TokenGrid(2, 2, 2), torch.tensor([1]), lines=["what is it? " * 40])
    assert long.width == short.width
    assert long.height > short.height + 40


def test_pictures_are_saved_whole(tmp_path: Path) -> None:
    sheet = draw_kept_tokens(white(1, 20, 20), TokenGrid(1, 2, 2), torch.tensor([1]))
    save_image(sheet, tmp_path / "new" / "kept.png")
    assert Image.open(tmp_path / "new" / "kept.png").size == sheet.size
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["kept.png"]
