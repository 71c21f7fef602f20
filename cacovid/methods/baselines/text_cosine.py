"""Tokens that resemble the question.

Shape legend: N video tokens, Q tokens of the question, D width, k retained tokens.
"""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cacovid.errors import BadItem
from cacovid.methods.protocol import Baseline, EvaluationCase
from cacovid.methods.selection import top_tokens
from cacovid.models.adapter import VideoLLM


class TextCosine(Baseline):
    """The tokens most similar to any token of the question: max over the question of the cosine.

    Similarity of projected video tokens with raw word embeddings. The chat template and the options
    are left out: with them the baseline gets weaker (measured on development clips of the embedded
    benchmark: AUC 0.80 instead of 0.91).

    Args:
        embed: the (Q, D) raw embeddings of a question's Q tokens.
    """

    name = "text-cosine"

    def __init__(self, embed: Callable[[str], Tensor]) -> None:
        self.embed = embed

    @classmethod
    def for_model(cls, video_llm: VideoLLM) -> Self:
        """With the embeddings of ``video_llm``, on its device."""
        table = video_llm.model.get_input_embeddings()

        def embed(question: str) -> Tensor:
            ids = video_llm.processor.tokenizer(question, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                rows: Tensor = table(torch.tensor(ids, dtype=torch.long, device=video_llm.device))
            return rows

        return cls(embed)

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """(k,) ascending token indices."""
        return top_tokens(self.token_scores(case), case.budget(retention))

    def token_scores(self, case: EvaluationCase) -> Tensor:
        """(N,) largest cosine to a token of the question.

        Raises:
            BadItem: the model's tokenizer reads nothing in the question.
        """
        text = normalize(self.embed(case.item.question).float(), dim=-1)
        if not len(text):
            raise BadItem(f"question {case.item.id!r}: {case.item.question!r} has no token for this model; reword it")
        return (normalize(case.encoded.features.float(), dim=-1) @ text.T).amax(dim=1).cpu()
