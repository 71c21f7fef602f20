"""What a compression method makes of an encoded question: kept tokens, merged rows, steps within the LLM.

    case -> method -> Reduction(keep)                          tokens are chosen before the LLM
                      Reduction.merged(encoded, Merge)         tokens are averaged before the LLM
                      Reduction(keep, inside=...)              tokens are dropped or averaged within it

All merging here is linear in the tokens, so one :class:`Merge` serves features and deepstack levels alike.

Shape legend: N video tokens of a clip, k tokens that enter the LLM, n tokens left at an LLM layer, D width.
"""

from dataclasses import dataclass, replace
from typing import Protocol, Self

import torch
from torch import Tensor

from cacovid.models.encoded import Encoded
from cacovid.models.layer_view import LayerView


@dataclass(frozen=True, eq=False)
class Merge:
    """Where each of n tokens goes: into itself (it stays), into another (it is merged), or nowhere (dropped)."""

    target: Tensor  # (n,) int64 on the CPU: index of the token that it goes into; -1: dropped
    weight: Tensor  # (n,) float32: its share of the row that stands there

    @classmethod
    def keeping(cls, keep: Tensor, tokens: int) -> Self:
        """The tokens ``keep`` of ``tokens``, unchanged; the others are dropped."""
        target = torch.full((tokens,), -1, dtype=torch.long)
        target[keep] = keep
        return cls(target, torch.ones(tokens))

    @classmethod
    def averaging(cls, target: Tensor) -> Self:
        """Plain means of the tokens with one ``target`` (n,); -1 drops."""
        sizes = torch.bincount(target[target >= 0], minlength=len(target))
        return cls(target, 1.0 / sizes[target.clamp_min(0)].clamp_min(1).float())

    @property
    def kept(self) -> Tensor:
        """(k,) int64 ascending indices at which rows are left."""
        kept: Tensor = self.target[self.target >= 0].unique()
        return kept

    @property
    def only_drops(self) -> bool:
        """Whether the rows that are left are the tokens' own."""
        stays = self.target == torch.arange(len(self.target))
        return bool((stays | (self.target < 0)).all()) and bool((self.weight[stays] == 1).all())

    def then(self, later: "Merge") -> "Merge":
        """This merge, and ``later``, of the same n tokens, on the rows that it left."""
        alive, via = self.target >= 0, self.target.clamp_min(0)
        return Merge(torch.where(alive, later.target[via], -1), self.weight * later.weight[via])

    def rows(self, tokens: Tensor) -> Tensor:
        """(k, D) rows of ``tokens`` (n, D), summed in float32, in its type and on its device."""
        kept, alive = self.kept, (self.target >= 0).nonzero().squeeze(1)
        if self.only_drops:
            return tokens[kept.to(tokens.device)]
        place = torch.searchsorted(kept, self.target[alive]).to(tokens.device)
        weight = self.weight[alive].to(tokens.device)
        parts = tokens[alive.to(tokens.device)].float() * weight[:, None]
        summed = torch.zeros(len(kept), tokens.shape[1], device=tokens.device)
        return summed.index_add_(0, place, parts).to(tokens.dtype)


class Inside(Protocol):
    """A method's steps within the LLM; one object serves one question."""

    def step(self, view: LayerView) -> Merge | None:
        """What becomes of the n tokens that reach layer ``view.layer`` (1 or later); None: they all stay.

        Asked once a layer, in their order, during the prompt's first pass.

        Raises:
            NotDefined: the budget cannot be kept any more.
        """
        ...


@dataclass(frozen=True, eq=False)
class Reduction:
    """The k tokens that enter the LLM, and what happens to them within it."""

    keep: Tensor  # (k,) int64 ascending token indices on the CPU: where the rows stand
    rows: Tensor | None = None  # (k, D) in place of the tokens' own features
    deepstack: tuple[Tensor, ...] | None = None  # each (k, D), with `rows`; None: the tokens' own
    inside: Inside | None = None

    @classmethod
    def merged(cls, encoded: Encoded, merge: Merge, inside: Inside | None = None) -> Self:
        """The rows that ``merge`` makes of the N video tokens, in features and deepstack levels."""
        if merge.only_drops:
            return cls(merge.kept, inside=inside)
        levels = tuple(merge.rows(level) for level in encoded.deepstack)
        return cls(merge.kept, merge.rows(encoded.features), levels, inside)

    @property
    def selects(self) -> bool:
        """Whether it is a choice of tokens and nothing else."""
        return self.rows is None and self.inside is None

    def applied(self, encoded: Encoded) -> Encoded:
        """``encoded`` with this reduction's rows at their places; answer from it with ``keep``."""
        if self.rows is None:
            return encoded
        at = self.keep.to(encoded.features.device)

        def placed(tokens: Tensor, rows: Tensor) -> Tensor:
            return tokens.index_copy(0, at, rows.to(tokens))

        levels = self.deepstack or tuple(level[at] for level in encoded.deepstack)
        return replace(
            encoded,
            features=placed(encoded.features, self.rows),
            deepstack=tuple(map(placed, encoded.deepstack, levels)),
        )
