"""Answers of the frozen Video-LLM from compressed prompts, and what they are worth.

Shape legend: G combinations (rows of `keep`), k retained tokens, N video tokens, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from cacovid.answering.prompting import option_letters
from cacovid.answering.reward import reward
from cacovid.errors import BadItem
from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import Encoded
from cacovid.models.inside import answering_with
from cacovid.models.reduction import Reduction
from cacovid.records import VideoQuestion


@dataclass(frozen=True)
class Scores:
    """What G combinations were worth; one row each."""

    reward: Tensor  # (G,) float32 in [0, 1]
    likelihood: Tensor  # (G,) float32 probability of the right option; 0 where the answer was generated
    answers: tuple[str, ...]  # G letters or generated texts


def score(video_llm: VideoLLM, encoded: Encoded, item: VideoQuestion, keep: Tensor) -> Scores:
    """Let the frozen Video-LLM answer ``item`` from each row of ``keep`` and reward correctness.

    Multiple choice is answered by the prefill alone: the option letter of largest logit at the last
    prompt position. Every other type is generated greedily (the paper answers near-greedily).

    Args:
        keep: (G, k) int64 ascending retained token indices.

    Raises:
        BadItem: The item's own answer cannot be used (no such option, not a number).
    """
    if item.problem_type == "multiple choice":
        return _score_options(video_llm, encoded, item, keep)
    texts = video_llm.generate(encoded, keep)
    rewards = [reward(item.problem_type, text, item.answer) for text in texts]
    return Scores(
        reward=torch.tensor(rewards, dtype=torch.float32),
        likelihood=torch.zeros(len(texts)),
        answers=tuple(texts),
    )


def score_reduction(
    video_llm: VideoLLM, encoded: Encoded, item: VideoQuestion, reduction: Reduction
) -> tuple[Scores, list[int]]:
    """:func:`score` of one reduction, merged rows and steps within the LLM included.

    Returns:
        Scores of one row, and the video tokens at each LLM layer.

    Raises:
        BadItem: As :func:`score`.
        NotDefined: A step within the LLM cannot be taken.
    """
    seen = reduction.applied(encoded)
    with answering_with(video_llm, seen, reduction) as tokens:
        scores = score(video_llm, seen, item, reduction.keep[None].to(video_llm.device))
    return scores, tokens


def _score_options(video_llm: VideoLLM, encoded: Encoded, item: VideoQuestion, keep: Tensor) -> Scores:
    letters = option_letters(len(item.options))
    if item.answer not in letters:
        raise BadItem(f"answer {item.answer!r} of item {item.id!r} is none of its options {', '.join(letters)}")
    right = letters.index(item.answer)
    logits = video_llm.first_logits(encoded, keep).float()
    tokens = torch.tensor(video_llm.option_tokens(letters), device=logits.device)
    chosen = logits[:, tokens].argmax(dim=1).cpu()
    likelihood = logits.log_softmax(dim=1)[:, tokens[right]].exp().cpu()
    return Scores(
        reward=(chosen == right).float(),
        likelihood=likelihood,
        answers=tuple(letters[place] for place in chosen.tolist()),
    )
