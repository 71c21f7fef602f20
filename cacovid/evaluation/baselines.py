"""Training-free methods and the oracle, all with the policies' exact budgets.

Shape legend: N video tokens, Lt text columns, D width, k retained tokens.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from cacovid.errors import UserError
from cacovid.evaluation.methods import EvaluationCase
from cacovid.records import VideoQuestion
from cacovid.selection import spread_evenly


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

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """(k,) ascending token indices."""
        return max_min_diverse(case.input.features, case.budget(retention)).sort().values


class TextCosine:
    """The tokens most similar to any token of the prompt's text: max over the text of the cosine.

    Similarity of projected video tokens with raw text embeddings; rows that travel with the video
    (newlines) are no text.
    """

    name = "text-cosine"

    def select(self, case: EvaluationCase, retention: float) -> Tensor:
        """(k,) ascending token indices."""
        order = self.token_scores(case).argsort(descending=True, stable=True)
        return order[: case.budget(retention)].sort().values

    def token_scores(self, case: EvaluationCase) -> Tensor:
        """(N,) largest cosine to a text token."""
        encoded = case.encoded
        is_text = ~torch.isin(encoded.text_columns, encoded.pinned_columns)
        text = normalize(encoded.text_embeds[is_text].float(), dim=-1)
        return (normalize(encoded.features.float(), dim=-1) @ text.T).amax(dim=1).cpu()


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
