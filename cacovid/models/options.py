"""Which tokens a model emits for the option letters of a multiple-choice question."""

from typing import Any

from cacovid.errors import UserError


def option_token_ids(tokenizer: Any, prompt: str, letters: tuple[str, ...]) -> list[int]:  # noqa: ANN401
    """The id of each letter as the first token after ``prompt``.

    A prompt that ends in white space or in a special token is continued by the bare letter
    ("...assistant\\n" + "A"), any other one by a space and the letter ("ASSISTANT:" + " A"), as in
    the text that such models were trained on.

    Args:
        tokenizer: The model's tokenizer.
        prompt: A rendered chat up to and including the generation prompt.
        letters: Distinct option letters.

    Raises:
        UserError: A letter is not one token of its own in this vocabulary.
    """
    before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    bare = prompt != prompt.rstrip() or (bool(before) and before[-1] in tokenizer.all_special_ids)
    ids = [_continuation(tokenizer, prompt, before, letter if bare else f" {letter}") for letter in letters]
    unknown = [letter for letter, token in zip(letters, ids, strict=True) if token == tokenizer.unk_token_id]
    if unknown or len(set(ids)) < len(ids):
        raise UserError(
            f"option letters {', '.join(unknown or letters)} have no token of their own in the model's vocabulary: "
            "use fewer options or another model"
        )
    return ids


def _continuation(tokenizer: Any, prompt: str, before: list[int], answer: str) -> int:  # noqa: ANN401
    after = tokenizer(prompt + answer, add_special_tokens=False)["input_ids"]
    if after[:-1] != before:
        raise UserError(
            f"option {answer.strip()!r} is not a single token after the model's generation prompt: "
            "use another model or ask it as a free-form question"
        )
    return int(after[-1])
