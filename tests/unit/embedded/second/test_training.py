"""What the second world's model is trained on is what it is asked, and training goes the right way."""

from dataclasses import replace

import torch

from cacovid.embedded.second.batches import sample_batch, sample_retention
from cacovid.embedded.second.build import first_model
from cacovid.embedded.second.corpus import PIECES, SHORT_GLIMPSE, SIGN_PIECES, cache_scenes
from cacovid.embedded.second.questions import count, hours, order, sign, where
from cacovid.embedded.second.scenes import FIRST_MOVED, GRID, draw_scene
from cacovid.embedded.second.train import Stage, pieces_shown, train_stage
from cacovid.embedded.splits import DEVELOPMENT
from cacovid.embedded.tokenizer import CHAT_TEMPLATE, SECOND_VOCABULARY, UNKNOWN, build_tokenizer
from cacovid.seeding import generator

SEEDS = DEVELOPMENT[:4]
SCENES = [draw_scene(seed, SHORT_GLIMPSE) for seed in SEEDS[::2]]  # as drawn: those between are read back from H.264
CACHE = cache_scenes(first_model(0), SEEDS)
NAMES = {number: word for word, number in SECOND_VOCABULARY.items()}


def blocks(batch):
    return batch.ids.split(batch.lengths, dim=1)


def every_question(scene):
    pairs = [
        sorted(pair, key=lambda index: scene.objects[index].tokens)
        for pair in ((0, 1), (1, 2), (0, 2), (0, 3), (1, 3), (2, 3))
    ]
    yield from (hours(scene, *pair) for pair in pairs)
    yield from (where(scene, moved) for moved in range(FIRST_MOVED, FIRST_MOVED + 2))
    yield from (count(scene), sign(scene))
    four = range(4)
    yield from (order(scene, (a, b, c)) for a in four for b in four for c in four if len({a, b, c}) == 3)


def test_training_asks_what_the_table_asks_word_for_word_with_the_same_answers_and_pieces():
    tokenizer = build_tokenizer(SECOND_VOCABULARY)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    everything = torch.ones(2, PIECES, dtype=torch.bool)
    batch = sample_batch(CACHE, torch.tensor([0, 2]), everything, generator("words"))
    assert len(blocks(batch)) == 5
    for row, scene in enumerate(SCENES):
        known = {}
        for question in every_question(scene):
            lettered = [f"{letter}. {text}" for letter, text in zip("ABC", question.options, strict=False)]
            known[tuple(tokenizer("\n".join([question.text, *lettered]))["input_ids"])] = question
        assert all(SECOND_VOCABULARY[UNKNOWN] not in ids for ids in known)
        for asked, block in zip(batch.asked, blocks(batch), strict=True):
            ids = block[row].tolist()
            question = known[tuple(ids[: -3 - asked.answer.shape[1]])]
            assert question.kind == asked.kind
            assert [NAMES[word] for word in ids[-3 - asked.answer.shape[1] :][:3]] == [
                "<|im_end|>",
                "<|im_start|>",
                "assistant",
            ]
            assert " ".join(NAMES[word] for word in asked.answer[row].tolist()) == question.answer
            shown = {int(piece) for tokens in question.pieces for piece in CACHE.pieces[2 * row][list(tokens)]}
            assert shown == {*asked.pieces[row].nonzero().flatten().tolist()}


def test_retention_keeps_a_token_of_every_piece_that_is_sure():
    draw = generator("retention")
    alike = torch.zeros(CACHE.pieces.shape)
    for sure in (0.0, 1.0):
        kept = sample_retention(CACHE.pieces, 60, sure, alike, draw)
        assert (kept.diff(dim=1) > 0).all()
        shown = pieces_shown(CACHE.pieces.long().gather(1, kept))
        assert shown.shape == (len(SEEDS), PIECES)
        assert bool(shown.all()) == (sure == 1.0)
    everything = sample_retention(CACHE.pieces, GRID.tokens, 0.0, alike, draw)
    assert (everything == torch.arange(GRID.tokens)).all()


def test_retention_prefers_what_it_likes():
    draw = generator("liking")
    liked = sample_retention(CACHE.pieces, 115, 0.0, 20.0 * CACHE.filled, draw)
    assert CACHE.filled.gather(1, liked).all()
    alike = sample_retention(CACHE.pieces, 115, 0.0, 0.0 * CACHE.filled, draw)
    assert 0.4 < CACHE.filled.gather(1, alike).float().mean() < 0.7
    assert ((CACHE.pieces >= 0) <= CACHE.filled).all()


def test_pieces_of_the_sign_are_where_its_syllables_are():
    for row, scene in enumerate(SCENES):
        for place, tokens in enumerate(scene.sign_tokens):
            assert (CACHE.pieces[2 * row] == SIGN_PIECES + place).nonzero().flatten().tolist() == [*tokens]


def test_a_stage_learns_and_repeats_itself_with_the_same_seed():
    stage = Stage("short", steps=8, scenes=2, fewest=0.01, most=0.02, sure=1.0, warmup=2)

    def run():
        model, losses = first_model(0), []
        end = train_stage(model, CACHE, stage, 0, lambda *report: losses.append(report[1]))
        return end, model.get_input_embeddings().weight, losses

    (end, weights, reports), again = run(), run()
    assert reports == [8]
    assert end.keys() >= {"order", "count", "where", "sign", "hours"}
    assert end["loss"] < train_stage(first_model(0), CACHE, replace(stage, steps=1), 0)["loss"]
    assert torch.equal(weights, again[1])


def test_objects_are_counted_among_those_that_are_shown():
    shown = torch.ones(len(SEEDS), PIECES, dtype=torch.bool)
    shown[:, 1] = False
    batch = sample_batch(CACHE, torch.arange(len(SEEDS)), shown, generator("counts"))
    asked = next(one for one in batch.asked if one.kind == "count")
    left = CACHE.alike & shown[:, :4]
    assert left.sum(1).tolist() == asked.pieces.sum(1).tolist()
    for row in range(len(SEEDS)):
        assert NAMES[int(asked.answer[row])] == str(int(left[row].sum()))
        assert asked.found[row, 0].nonzero().flatten().tolist() == sorted(CACHE.hours[row, left[row]].tolist())
