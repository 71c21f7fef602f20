"""Training-free methods and the oracle, all with the policies' exact budgets.

Shape legend: N video tokens, Q tokens of the question, D width, k retained tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cacovid.errors import BadItem, UserError
from cacovid.methods.protocol import EvaluationCase
from cacovid.methods.selection import spread_evenly
from cacovid.models.adapter import VideoLLM
from cacovid.records import VideoQuestion


class RandomTokens:
    """k tokens drawn uniformly without replacement."""

    name = "random"

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """(k,) ascending token indices."""
        order = torch.randperm(case.input.grid.tokens, generator=case.generator(self.name, retention))
        return order[: case.budget(retention)].sort().values


class UniformTokens:
    """k tokens spread evenly over the clip in token order."""

    name = "uniform"

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """(k,) ascending token indices."""
        return spread_evenly(case.budget(retention), case.input.grid.tokens)


class DivPrune:
    """Max-min diversity of the projected features (Alvar et al. 2025, DivPrune).

    Distance 1 - cosine. The first token is the one farthest from its nearest neighbour; then
    always the token farthest from the chosen set; ties go to the lower index.
    """

    name = "divprune"

    def __init__(self) -> None:
        self._last: tuple[EvaluationCase, Tensor] | None = None

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """(k,) ascending token indices."""
        count = case.budget(retention)
        # The greedy order does not depend on the budget: a smaller one takes its beginning.
        if self._last is None or self._last[0] is not case or len(self._last[1]) < count:
            self._last = (case, max_min_diverse(case.input.features, count))
        return self._last[1][:count].sort().values


class TextCosine:
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

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """(k,) ascending token indices."""
        order = self.token_scores(case).argsort(descending=True, stable=True)
        return order[: case.budget(retention)].sort().values

    def token_scores(self, case: EvaluationCase) -> Tensor:
        """(N,) largest cosine to a token of the question.

        Raises:
            BadItem: the model's tokenizer reads nothing in the question.
        """
        text = normalize(self.embed(case.item.question).float(), dim=-1)
        if not len(text):
            raise BadItem(f"question {case.item.id!r}: {case.item.question!r} has no token for this model; reword it")
        return (normalize(case.encoded.features.float(), dim=-1) @ text.T).amax(dim=1).cpu()


def question_embedder(video_llm: VideoLLM) -> Callable[[str], Tensor]:
    """Questions into the (Q, D) raw embeddings of their tokens, on the model's device."""
    table = video_llm.model.get_input_embeddings()

    def embed(question: str) -> Tensor:
        ids = video_llm.processor.tokenizer(question, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            rows: Tensor = table(torch.tensor(ids, dtype=torch.long, device=video_llm.device))
        return rows

    return embed


class OracleEvidence:
    """The asked object's own tokens first, the rest of the budget spread evenly: an upper bound."""

    name = "oracle"

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """(k,) ascending token indices.

        Raises:
            UserError: the question has no evidence.
        """
        check_evidence(case.item)
        evidence = torch.tensor(sorted(set(evidence_cells(case))))
        total, tokens = case.budget(retention), case.input.grid.tokens
        if len(evidence) >= total:
            return evidence[spread_evenly(total, len(evidence))]
        mask = torch.zeros(tokens, dtype=torch.bool)
        mask[evidence] = True
        free = (~mask).nonzero().squeeze(1)
        mask[free[spread_evenly(total - len(evidence), len(free))]] = True
        return mask.nonzero().squeeze(1)


def max_min_diverse(features: Tensor, count: int) -> Tensor:
    """(count,) int64 indices of (N, D) ``features`` in the order of greedy max-min choice.

    Memory is O(N * D): one row of distances a step; the first token's neighbours in blocks.
    """
    rows = normalize(features.float(), dim=-1)
    chosen = torch.empty(count, dtype=torch.long)
    chosen[0] = _farthest_from_neighbour(rows)
    nearest = 1 - rows @ rows[chosen[0]]
    nearest[chosen[0]] = -torch.inf
    for step in range(1, count):
        best = int(nearest.argmax())
        chosen[step] = best
        torch.minimum(nearest, 1 - rows @ rows[best], out=nearest)
        nearest[best] = -torch.inf
    return chosen


def _farthest_from_neighbour(rows: Tensor, block: int = 1024) -> int:
    """Index of the unit row whose largest cosine to another row is smallest."""
    count = rows.shape[0]
    if count == 1:
        return 0
    closest = torch.empty(count, device=rows.device)
    for start in range(0, count, block):
        similarity = rows[start : start + block] @ rows.T
        here = torch.arange(similarity.shape[0], device=rows.device)
        similarity[here, here + start] = -torch.inf
        closest[start : start + block] = similarity.amax(dim=1)
    return int(closest.argmin())


def check_evidence(item: VideoQuestion) -> None:
    """Raises UserError for a question without evidence."""
    if not item.evidence:
        raise UserError(
            f"method 'oracle' needs evidence, question {item.id!r} has none: "
            "fill the table's column 'evidence' or leave the method out"
        )


def evidence_cells(case: EvaluationCase) -> tuple[int, ...]:
    """The item's evidence, checked against the model's grid.

    Raises:
        UserError: cells beyond the grid: the table was made for another grid.
    """
    tokens = case.input.grid.tokens
    beyond = [cell for cell in (*case.item.evidence, *case.item.other_objects) if cell >= tokens]
    if beyond:
        raise UserError(
            f"question {case.item.id!r}: token cell {beyond[0]} lies beyond the {tokens} tokens of the model's grid "
            f"{tuple(case.input.grid)}; use a table made for this grid or drop its evidence columns"
        )
    return case.item.evidence
