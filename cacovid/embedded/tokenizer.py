"""The word-level tokenizer of the tiny Video-LLM and its chat template.

Letter case, punctuation and line ends are dropped by the normalizer, which keeps prompts short: a
question with four options takes 17 tokens. The option letters A-D stay apart from the article "a".
"""

from typing import Final

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from cacovid.embedded.glyphs import COLOUR_NAMES, SHAPES, SYLLABLES
from cacovid.embedded.questions import LETTERS

PAD: Final = "<pad>"
UNKNOWN: Final = "<unk>"
IMAGE: Final = "<image>"
VIDEO: Final = "<video>"
TURN_START: Final = "<|im_start|>"
TURN_END: Final = "<|im_end|>"
SPECIAL: Final = (PAD, UNKNOWN, IMAGE, VIDEO, TURN_START, TURN_END)
WORDS: Final = ("user", "assistant", *LETTERS, "what", "color", "shape", "is", "the", "object", *SHAPES, *COLOUR_NAMES)
MORE_WORDS: Final = (  # of the second world
    *("which", "appears", "first", "how", "many", "objects", "are", "there", "where", "did", "go", "does", "sign"),
    *("say", "hours", "from", "to", "left", "right", "up", "down", *"1234567", *SYLLABLES, "and", "it"),
)
VOCABULARY: Final = {word: index for index, word in enumerate((*SPECIAL, *WORDS))}
SECOND_VOCABULARY: Final = {word: index for index, word in enumerate((*SPECIAL, *WORDS, *MORE_WORDS))}

CHAT_TEMPLATE: Final = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'video' %}<video>{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %} {{ part['text'] }}{% endfor %}"
    "{% endif %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
)

_PRIVATE_USE = 0xE000  # stands for a letter while all else is made lower case


def build_tokenizer(vocabulary: dict[str, int] = VOCABULARY) -> PreTrainedTokenizerFast:
    """The tokenizer with its chat template; it pads on the left, for generation."""
    stand_ins = {letter: chr(_PRIVATE_USE + index) for index, letter in enumerate(LETTERS)}
    steps: list[normalizers.Normalizer] = [
        *(normalizers.Replace(Regex(rf"\b{letter}\b"), stand_in) for letter, stand_in in stand_ins.items()),
        normalizers.Lowercase(),
        normalizers.Replace("colour", "color"),
        normalizers.Replace(Regex(rf"[^\p{{L}}\p{{N}}{''.join(stand_ins.values())}]+"), " "),
        *(normalizers.Replace(stand_in, letter) for letter, stand_in in stand_ins.items()),
    ]
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=TURN_END,
        additional_special_tokens=[IMAGE, VIDEO, TURN_START],
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )
