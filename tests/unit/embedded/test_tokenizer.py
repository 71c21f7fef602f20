import numpy as np
import pytest
import torch

from cacovid.answering.prompting import format_prompt
from cacovid.embedded.clips import draw_clip
from cacovid.embedded.dataset import question_record
from cacovid.embedded.glyphs import COLOUR_NAMES, SHAPES
from cacovid.embedded.language_batch import sample_questions
from cacovid.embedded.questions import clip_questions
from cacovid.embedded.splits import DEVELOPMENT
from cacovid.embedded.tokenizer import UNKNOWN, VOCABULARY, build_tokenizer
from cacovid.seeding import generator


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def words(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text).input_ids)


def test_a_prompt_takes_one_token_a_word_without_punctuation(tokenizer):
    text = "What color is the X object?\nA. red\nB. blue\nC. green\nD. pink"
    expected = ["what", "color", "is", "the", "x", "object", "A", "red", "B", "blue", "C", "green", "D", "pink"]
    assert words(tokenizer, text) == expected


def test_option_letters_stay_apart_from_the_article(tokenizer):
    assert words(tokenizer, "a A. A, (B)") == [UNKNOWN, "A", "A", "B"]
    for letter in "ABCD":
        assert tokenizer.encode(letter) == [VOCABULARY[letter]]
        assert tokenizer.decode([VOCABULARY[letter]]) == letter


def test_british_spelling_is_understood(tokenizer):
    assert words(tokenizer, "Colour") == ["color"]


def test_every_shape_and_colour_is_one_word(tokenizer):
    names = [*SHAPES, *COLOUR_NAMES]
    assert words(tokenizer, " ".join(names)) == names


def test_prompts_of_clips_have_no_unknown_word(tokenizer):
    for seed in DEVELOPMENT[:10]:
        clip = draw_clip(seed)
        for question in clip_questions(clip):
            ids = tokenizer(format_prompt(question_record(clip, question, 0, ""))).input_ids
            assert len(ids) == 14
            assert VOCABULARY[UNKNOWN] not in ids


def test_chat_template_is_what_the_language_model_was_trained_on(tokenizer):
    objects = np.stack([np.arange(8), np.arange(8)], axis=1)
    questions = sample_questions(torch.from_numpy(objects)[None], torch.ones(1, 8), 1, generator(0))
    block = questions.ids[0, 0].tolist()
    text = tokenizer.decode(block[:14])
    content = [{"type": "video"}, {"type": "text", "text": text}]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    assert words(tokenizer, rendered)[:3] == ["<|im_start|>", "user", "<video>"]
    assert tokenizer(rendered).input_ids[3:] == block[:-1]
