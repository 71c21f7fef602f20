"""The second world's truth: pieces of evidence hold what they should, and answers follow from the scene."""

import numpy as np
import pytest

from cacovid.embedded import glyphs
from cacovid.embedded.rendering import CELLS
from cacovid.embedded.second.questions import PROBLEM_TYPES, scene_questions, scene_records
from cacovid.embedded.second.scenes import FRAMES, GLIMPSED, GRID, HOUR, NO_KIND, draw_scene, hour_of
from cacovid.embedded.splits import DEVELOPMENT

SCENES = [draw_scene(seed) for seed in DEVELOPMENT[:24]]


def asked(scene):
    return {question.kind: question for question in scene_questions(scene)}


def tokens_of(scene, *, shape=None, color=None):
    """Every token that shows it, read from the cells' classes."""
    shown = scene.kinds < len(glyphs.SHAPES)
    if shape is not None:
        shown &= scene.kinds == glyphs.SHAPES.index(shape)
    if color is not None:
        shown &= scene.colours == glyphs.COLOUR_NAMES.index(color)
    return tuple(np.flatnonzero(shown).tolist())


def test_a_scene_is_long_and_fixed_by_its_seed():
    scene = SCENES[0]
    again = draw_scene(scene.seed)
    assert GRID.tokens == 2304
    assert scene.frames.shape == (64, 96, 96, 3)
    assert (scene.frames == again.frames).all()
    assert scene_questions(scene) == scene_questions(again)
    assert (scene.frames != SCENES[1].frames).any()


def test_clutter_fills_half_and_objects_one_token_in_twelve_at_most():
    filled = np.mean([(scene.kinds != NO_KIND).mean() for scene in SCENES])
    objects = [sum(len(one.tokens) for one in scene.objects) / GRID.tokens for scene in SCENES]
    assert 0.5 < filled < 0.57
    assert max(objects) < 1 / 12


def test_objects_are_glimpsed_for_two_to_four_frames():
    lengths = {len(one.tokens) for scene in SCENES for one in scene.objects[:GLIMPSED]}
    assert lengths == {2, 3, 4}


def test_the_light_tells_the_hour():
    for scene in SCENES[:4]:
        empty = scene.kinds == NO_KIND
        tiles = scene.frames.reshape(FRAMES, 6, 16, 6, 16, 3).swapaxes(2, 3).reshape(FRAMES, CELLS, 256, 3)
        lights = [np.unique(tiles[frame][empty[frame]].reshape(-1, 3), axis=0) for frame in range(FRAMES)]
        assert all(len(light) == 1 for light in lights)
        assert len({tuple(light[0]) for light in lights}) == 8
        assert all((lights[frame] == lights[frame - frame % HOUR]).all() for frame in range(FRAMES))


def test_order_is_that_of_the_first_tokens_of_three_objects():
    answers = set()
    for scene in SCENES:
        question = asked(scene)["order"]
        assert len(question.pieces) == len(set(question.options)) == 3
        for option, piece in zip(question.options, question.pieces, strict=True):
            assert piece == tokens_of(scene, shape=option)
            assert len({hour_of(token) for token in piece}) == 1
        seen_first = min(question.options, key=lambda option: tokens_of(scene, shape=option)[0])
        assert question.options["ABC".index(question.answer)] == seen_first
        answers.add(question.answer)
    assert answers == {*"ABC"}


def test_count_is_the_number_of_shapes_in_the_asked_color():
    answers = set()
    for scene in SCENES:
        question = asked(scene)["count"]
        color = question.text.split()[2]
        tokens = tokens_of(scene, color=color)
        assert len(set(scene.kinds.flat[list(tokens)].tolist())) == len(question.pieces) == int(question.answer)
        assert sorted(token for piece in question.pieces for token in piece) == [*tokens]
        answers.add(question.answer)
    assert answers == {*"1234"}


def test_where_it_went_follows_from_its_two_places():
    answers = set()
    for scene in SCENES:
        question = asked(scene)["where"]
        before, after = question.pieces
        color, direction = question.answer.split()
        assert {*before, *after} == {*before, *after} & {*tokens_of(scene, color=color)}
        assert (*before, *after) == tokens_of(scene, shape=question.text.split()[4])
        assert before[-1] // CELLS < FRAMES // 2 <= after[0] // CELLS
        (start,), (end,) = ({token % CELLS for token in piece} for piece in question.pieces)
        down, right = end // 6 - start // 6, end % 6 - start % 6
        assert 0 in (down, right)
        assert abs(down + right) >= 2
        vertical = {-1: "up", 1: "down"}[np.sign(down)] if down else None
        assert direction == (vertical or {-1: "left", 1: "right"}[np.sign(right)])
        answers.add(direction)
    assert answers == {"left", "right", "up", "down"}


def test_the_sign_reads_from_left_to_right_whatever_lights_up_first():
    in_order = set()
    for scene in SCENES:
        question = asked(scene)["sign"]
        cells = [{token % CELLS for token in piece} for piece in question.pieces]
        assert [len(cell) for cell in cells] == [1, 1, 1]
        first = min(cells[0])
        assert cells == [{first}, {first + 1}, {first + 2}]
        kinds = [{int(scene.kinds.flat[token]) for token in piece} for piece in question.pieces]
        assert question.answer == " ".join(glyphs.SYLLABLES[kind.pop() - glyphs.NO_KIND] for kind in kinds)
        hours = [hour_of(piece[0]) for piece in question.pieces]
        assert len(set(hours)) == 3
        in_order.add(hours == sorted(hours))
    assert in_order == {True, False}


def test_hours_between_two_objects():
    for scene in SCENES:
        question = asked(scene)["hours"]
        words = question.text.rstrip("?").split()
        pieces = tuple(tokens_of(scene, shape=words[place]) for place in (5, 8))
        assert pieces == question.pieces
        assert int(question.answer) == hour_of(pieces[1][0]) - hour_of(pieces[0][0]) > 0


@pytest.mark.parametrize("scene", SCENES[:4])
def test_records_carry_all_pieces_and_every_problem_type(scene):
    records = scene_records(scene, "clip.mp4")
    assert [record.problem_type for record in records] == [*PROBLEM_TYPES.values()]
    shown = {*tokens_of(scene), *(token for tokens in scene.sign_tokens for token in tokens)}
    for record, question in zip(records, scene_questions(scene), strict=True):
        assert {*record.evidence} == {token for piece in question.pieces for token in piece}
        assert not {*record.evidence} & {*record.other_objects}
        assert {*record.evidence} | {*record.other_objects} == shown


def test_syllables_are_tiles_of_their_own():
    tiles = [*glyphs.clutter_masks(), *glyphs.syllable_masks()]
    assert len({tile.tobytes() for tile in tiles}) == 32 + 12
