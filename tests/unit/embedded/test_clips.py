from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from cacovid.embedded import glyphs
from cacovid.embedded.clips import FRAMES, GRID, NEEDLES, Clip, draw_clip
from cacovid.embedded.questions import clip_questions, make_question
from cacovid.embedded.rendering import CELLS, FILLED, SEEN, SIDE, UNSEEN
from cacovid.embedded.splits import DEVELOPMENT, SPLITS, split_seeds
from cacovid.errors import UserError

CLIPS = [draw_clip(seed) for seed in DEVELOPMENT[:60]]


def cell_pixels(clip: Clip, token: int) -> np.ndarray:
    frame, cell = divmod(token, CELLS)
    row, column = divmod(cell, SIDE)
    size = glyphs.CELL
    return clip.frames[frame, row * size : (row + 1) * size, column * size : (column + 1) * size]


def test_a_clip_depends_on_its_seed_alone():
    again = draw_clip(CLIPS[0].seed)
    assert np.array_equal(again.frames, CLIPS[0].frames)
    assert again.objects == CLIPS[0].objects
    assert clip_questions(again) == clip_questions(CLIPS[0])
    assert not np.array_equal(CLIPS[0].frames, CLIPS[1].frames)


def test_frames_are_eight_of_96_pixels():
    assert CLIPS[0].frames.shape == (8, 96, 96, 3)
    assert CLIPS[0].frames.dtype == np.uint8
    assert GRID.tokens == 288


def test_shapes_and_colours_are_unique_in_a_clip():
    for clip in CLIPS:
        assert len({one.shape for one in clip.objects}) == len(clip.objects) == 8
        assert len({one.colour for one in clip.objects}) == 8


def test_objects_are_visible_as_long_as_promised():
    for clip in CLIPS:
        visible = [len(one.tokens) for one in clip.objects]
        assert visible[:3] == [FRAMES] * 3
        assert all(3 <= frames <= 5 for frames in visible[3:5])
        assert all(1 <= frames <= 2 for frames in visible[5:])
        assert sum(one.is_needle for one in clip.objects) == NEEDLES


def test_visible_frames_of_an_object_are_consecutive_and_no_cell_shows_two():
    for clip in CLIPS:
        tokens = [token for one in clip.objects for token in one.tokens]
        assert len(tokens) == len(set(tokens))
        for one in clip.objects:
            frames = [token // CELLS for token in one.tokens]
            assert frames == list(range(frames[0], frames[-1] + 1))


def test_objects_move_to_neighbouring_cells_now_and_then():
    steps = [
        (abs(a // SIDE - b // SIDE) + abs(a % SIDE - b % SIDE))
        for clip in CLIPS
        for a, b in pairwise(clip.objects[0].cells)
    ]
    assert 0.2 < np.mean([step > 0 for step in steps]) < 0.4
    assert set(steps) == {0, 1}


def test_half_of_all_cells_are_filled_in_every_frame():
    for clip in CLIPS:
        assert ((clip.kinds != glyphs.NO_KIND).sum(axis=1) == FILLED).all()


def test_pixels_agree_with_the_labels_of_every_cell():
    background = np.array(glyphs.BACKGROUND)
    palette = np.array([*glyphs.COLOURS.values(), *glyphs.CLUTTER_COLOURS])
    for clip in CLIPS[:10]:
        for token in range(GRID.tokens):
            kind, colour = clip.kinds.flat[token], clip.colours.flat[token]
            cell = cell_pixels(clip, token).astype(int)
            if kind == glyphs.NO_KIND:
                assert (cell == background).all()
                continue
            brightest = cell.reshape(-1, 3)[cell.sum(axis=2).argmax()]
            assert np.abs(brightest - palette[colour]).max() <= 12
            assert np.abs(palette - brightest).sum(axis=1).argmin() == colour


def test_evidence_cells_show_the_object_and_no_other_cell_does():
    for clip in CLIPS[:10]:
        for index, one in enumerate(clip.objects):
            shown = np.flatnonzero((clip.kinds.ravel() == one.shape) & (clip.colours.ravel() == one.colour))
            assert tuple(shown) == one.tokens
            assert np.array_equal(np.flatnonzero(clip.owners() == index), shown)


def test_objects_and_clutter_share_no_colour_and_glyphs_are_distinct():
    objects = np.array(list(glyphs.COLOURS.values()))
    clutter = np.array(glyphs.CLUTTER_COLOURS)
    assert np.abs(objects[:, None] - clutter[None]).max(axis=2).min() > 2 * 12
    masks = glyphs.clutter_masks()
    assert len({mask.tobytes() for mask in masks}) == len(masks) == 32


@pytest.mark.parametrize("frames", [8, 32])
def test_longer_clips_show_each_object_no_longer(frames: int):
    for seed in DEVELOPMENT[:20]:
        clip = draw_clip(seed, frames)
        assert clip.frames.shape[:1] == clip.kinds.shape[:1] == (frames,)
        assert len(clip.owners()) == frames * CELLS
        assert [len(one.tokens) for one in clip.objects[:3]] == [8, 8, 8]
        assert sum(one.is_needle for one in clip.objects) == NEEDLES
        for index, one in enumerate(clip.objects):
            assert np.array_equal(np.flatnonzero(clip.owners() == index), one.tokens)


def test_unseen_clutter_has_other_glyphs_other_colours_and_fills_more():
    seen, unseen = ({mask.tobytes() for mask in glyphs.clutter_masks(each.glyph_seed)} for each in (SEEN, UNSEEN))
    assert len(unseen) == 32
    assert not seen & unseen
    new, others = np.array(UNSEEN.colours), np.array([*SEEN.colours, *glyphs.COLOURS.values()])
    assert np.linalg.norm(new[:, None] - others[None], axis=2).min() > 20
    clip = draw_clip(DEVELOPMENT[0], clutter=UNSEEN)
    assert ((clip.kinds != glyphs.NO_KIND).sum(axis=1) == UNSEEN.filled).all()
    plain = draw_clip(DEVELOPMENT[0])
    assert [one.tokens for one in clip.objects] == [one.tokens for one in plain.objects]


def test_clutter_lives_for_at_most_four_frames():
    # A cell's label can last longer by coincidence only.
    lasting = sum(
        int((clip.kinds[:5] == clip.kinds[4]).all(axis=0)[(clip.kinds[4] >= 9) & (clip.kinds[4] < 41)].sum())
        for clip in CLIPS
    )
    assert lasting <= 2


def test_questions_offer_the_answer_once_among_classes_of_the_same_clip():
    for clip in CLIPS:
        for question in clip_questions(clip):
            asked = clip.objects[question.asked]
            answer = asked.colour if question.about == "color" else asked.shape
            present = {one.colour if question.about == "color" else one.shape for one in clip.objects}
            assert question.options[question.correct] == answer
            assert len(set(question.options)) == 4
            assert set(question.options) <= present


def test_question_names_the_object_by_its_other_attribute():
    clip = CLIPS[0]
    random = np.random.default_rng(0)
    shape, colour = glyphs.SHAPES[clip.objects[2].shape], glyphs.COLOUR_NAMES[clip.objects[2].colour]
    about_color, about_shape = (make_question(random, clip, 2, about) for about in ("color", "shape"))
    assert about_color.text(clip) == f"what color is the {shape} object?"
    assert about_shape.text(clip) == f"what shape is the {colour} object?"
    assert about_color.option_texts()[about_color.correct] == colour
    assert about_shape.option_texts()[about_shape.correct] == shape


def test_a_clips_questions_differ_and_45_percent_ask_needles():
    asked = [(clip, question) for clip in CLIPS for question in clip_questions(clip)]
    assert len({(clip.seed, question.asked, question.about) for clip, question in asked}) == 2 * len(CLIPS)
    assert 0.35 < np.mean([clip.objects[question.asked].is_needle for clip, question in asked]) < 0.55
    assert min(Counter(question.letter for _, question in asked).values()) > 15


def test_splits_are_disjoint():
    ranges = sorted(SPLITS.values(), key=lambda seeds: seeds.start)
    assert all(before.stop <= after.start for before, after in pairwise(ranges))


@pytest.mark.parametrize(("split", "count", "first"), [("test", 1, 0), ("held-out", 0, 0), ("held-out", 2, 99_999)])
def test_seeds_outside_a_split_are_refused(split, count, first):
    with pytest.raises(UserError, match=r"split"):
        split_seeds(split, count, first)
