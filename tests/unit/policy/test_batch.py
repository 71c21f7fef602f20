import torch

from cacovid.policy.batch import collate, group_by_grid
from cacovid.records import TokenGrid
from tests.support.made_records import make_input


def test_the_prompt_comes_back_in_its_own_order():
    item = make_input(before=3, after=2)
    prompt = collate([item]).prompt()[0]
    expected = torch.cat([item.text[:3], item.features, item.text[3:]])
    assert torch.equal(prompt, expected)


def test_padding_lies_behind_the_prompt_and_is_masked():
    short, long = make_input(0, before=1, after=2), make_input(1, before=2, after=6, rows=1)
    batch = collate([short, long])
    tokens = short.grid.tokens
    assert batch.text_mask.sum(dim=1).tolist() == [3, 8]
    assert batch.prompt_mask.sum(dim=1).tolist() == [tokens + 3, tokens + 8]
    assert batch.prompt()[0, tokens + 3 :].eq(0).all()
    for row in range(2):
        columns = torch.cat([batch.video_columns[row], batch.text_columns[row]])
        assert columns.sort().values.tolist() == list(range(tokens + 8))
    assert batch.position_ids.shape == (1, 2, tokens + 8)


def test_grids_are_grouped_in_order_of_appearance():
    grids = [TokenGrid(2, 2, 2), TokenGrid(1, 2, 2), TokenGrid(2, 2, 2)]
    groups = group_by_grid([make_input(grid=grid) for grid in grids])
    assert list(groups.items()) == [(grids[0], [0, 2]), (grids[1], [1])]
