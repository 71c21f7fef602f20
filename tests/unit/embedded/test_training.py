from copy import deepcopy

import torch

from cacovid.embedded import language_batch as batches
from cacovid.embedded.clips import GRID
from cacovid.embedded.corpus import draw_corpus
from cacovid.embedded.language_batch import LAST, sample_questions, sample_retention
from cacovid.embedded.model import new_model, pixels
from cacovid.embedded.packed import PREFIX
from cacovid.embedded.schedule import flat_cosine
from cacovid.embedded.splits import DEVELOPMENT
from cacovid.embedded.tokenizer import VIDEO, VOCABULARY
from cacovid.embedded.train_language import (
    LanguageTraining,
    cache_features,
    place_word_embeddings,
    read_layers,
    train_language,
)
from cacovid.embedded.train_tower import TowerTraining, train_tower, video_features
from cacovid.seeding import generator

CORPUS = draw_corpus(DEVELOPMENT[:8])
WITHOUT_VIDEO = torch.tensor([PREFIX])


def questions_about_everything(draw, count=3):
    return sample_questions(CORPUS.objects, torch.ones(len(CORPUS), 8), count, draw)


def full_prompts(block, kept):
    """(B, L) ids of the ordinary prompt with the retained video tokens and the newline."""
    video = torch.full((len(block), kept + 1), VOCABULARY[VIDEO])
    return torch.cat([WITHOUT_VIDEO.expand(len(block), -1), video, block], dim=1)


@torch.no_grad()
def test_packed_questions_give_the_logits_of_the_ordinary_path():
    model, draw = new_model(1).eval(), generator("packed")
    questions = questions_about_everything(draw)
    kept = torch.arange(GRID.tokens).expand(len(CORPUS), -1)
    layers = read_layers(model, video_features(model, CORPUS.frames), kept, questions.ids)
    packed = model.lm_head(layers[-1])
    for place in range(3):
        block = questions.ids[:, place]
        prompt = full_prompts(block, GRID.tokens)
        ordinary = model(
            input_ids=prompt, attention_mask=torch.ones_like(prompt), pixel_values_videos=pixels(CORPUS.frames)
        ).logits[:, -batches.BLOCK :]
        torch.testing.assert_close(packed[:, place], ordinary, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_dropped_tokens_leave_gaps_in_the_positions():
    model, draw = new_model(1).eval(), generator("gaps")
    questions = questions_about_everything(draw, count=1)
    kept = torch.rand(len(CORPUS), GRID.tokens, generator=draw).topk(20, dim=1).indices.sort(dim=1).values
    rows = torch.arange(len(CORPUS))[:, None]
    features = video_features(model, CORPUS.frames)
    packed = read_layers(model, features[rows, kept], kept, questions.ids)[-1][:, 0, LAST]
    # Slow reference: the whole prompt, dropped columns hidden by a mask.
    prompt = full_prompts(questions.ids[:, 0], GRID.tokens)
    visible = torch.ones_like(prompt, dtype=torch.bool)
    start = len(PREFIX)
    visible[:, start : start + GRID.tokens] = torch.zeros(len(CORPUS), GRID.tokens, dtype=torch.bool).scatter(
        1, kept, True
    )
    causal = torch.ones(prompt.shape[1], prompt.shape[1], dtype=torch.bool).tril()
    embeds = model.get_input_embeddings()(prompt)
    embeds[:, start : start + GRID.tokens] = features
    embeds[:, start + GRID.tokens] = model.model.image_newline
    hidden = model.model.language_model(
        inputs_embeds=embeds,
        attention_mask=(causal & visible[:, None, :])[:, None],
        position_ids=torch.arange(prompt.shape[1]).expand_as(prompt),
    ).last_hidden_state
    torch.testing.assert_close(packed, hidden[:, -2], atol=1e-4, rtol=1e-4)


def test_questions_of_a_batch_agree_with_the_objects():
    questions = questions_about_everything(generator("agree"), count=6)
    names = {number: word for word, number in VOCABULARY.items()}
    for clip in range(len(CORPUS)):
        shape_of = {glyph_word(0, shape): glyph_word(1, colour) for shape, colour in CORPUS.objects[clip].tolist()}
        colour_of = {colour: shape for shape, colour in shape_of.items()}
        for ids, correct in zip(questions.ids[clip].tolist(), questions.correct[clip].tolist(), strict=True):
            words = [names[number] for number in ids]
            truth = (shape_of if words[1] == "color" else colour_of)[words[4]]
            options = words[7:14:2]
            assert options[correct] == truth
            assert len(set(options)) == 4
            assert words[-1] == "ABCD"[correct]


def glyph_word(attribute, index):
    names = {number: word for word, number in VOCABULARY.items()}
    return names[int(batches.WORDS[attribute, index])]


def test_retention_keeps_few_or_many_tokens_and_only_visible_objects_are_asked_for():
    draw = generator("retention")
    sizes = []
    for easy in [True, False] * 40:
        retention = sample_retention(CORPUS.owners, draw, easy=easy, everything=0.1)
        sizes.append(retention.kept.shape[1])
        assert (retention.kept.diff(dim=1) > 0).all()
        owners = CORPUS.owners.gather(1, retention.kept)
        for clip in range(len(CORPUS)):
            assert {*retention.asking[clip].nonzero().flatten().tolist()} <= {*owners[clip].tolist()}
    assert min(sizes) >= 5
    assert min(sizes) < 15
    assert max(sizes) == GRID.tokens


def test_schedule_warms_up_stays_flat_and_falls_to_zero():
    factor = flat_cosine(100, flat=0.5, warmup=10)
    assert factor(0) == 0.1
    assert factor(30) == factor(50) == 1
    assert abs(factor(75) - 0.5) < 1e-9
    assert factor(100) < 1e-9


def test_tower_learns_and_its_features_have_unit_deviation():
    reports = []
    model = new_model(0)
    config = TowerTraining(steps=40, frames=32)
    train_tower(model, CORPUS, config, 0, lambda stage, done, total, metrics: reports.append((done, metrics["loss"])))
    assert [done for done, _ in reports] == [20, 40]
    assert reports[-1][1] < reports[0][1]
    with torch.no_grad():
        assert abs(float(video_features(model, CORPUS.frames).std()) - 1) < 0.05


def test_language_stage_learns_and_repeats_itself_with_the_same_seed():
    def run(seed):
        reports = []
        model = new_model(0)
        cache = cache_features(model, CORPUS)
        config = LanguageTraining(steps=20, clips=4, questions=2, warmup=5)
        first = LanguageTraining(steps=1, clips=4, questions=2, warmup=5)
        place_word_embeddings(model, cache, seed)
        start = train_language(deepcopy(model), cache, first, seed)
        end = train_language(model, cache, config, seed, lambda *report: reports.append(report))
        return start, end, model.state_dict(), reports

    start, end, weights, reports = run(0)
    again = run(0)[2]
    assert end["letter"] < start["letter"]
    assert end["answer_at_word"] < start["answer_at_word"]
    assert reports[0][:3] == ("language", 20, 20)
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    other = run(1)[2]
    assert not torch.equal(weights["lm_head.weight"], other["lm_head.weight"])
