"""Runs a reduction's steps within the LLM, through forward pre-hooks on its decoder layers.

    layer 0 | 1 | ... | before layer L: step(view) -> Merge | layer L sees fewer columns, its cache is shorter | ...

Text columns and original positions stay. What the first pass over the prompt decided holds for later ones, so that
answering without a cache gives what answering with one does.

Shape legend: S columns of the compressed prompt, k tokens that enter the LLM, n left at a layer, B batch, D width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cacovid.errors import NotDefined
from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import Encoded
from cacovid.models.layer_view import LayerView
from cacovid.models.listening import listening
from cacovid.models.packing import kept_columns
from cacovid.models.reduction import Inside, Merge, Reduction


@contextmanager
def answering_with(video_llm: VideoLLM, encoded: Encoded, reduction: Reduction) -> Iterator[list[int]]:
    """In this block the model answers one prompt packed from ``encoded`` and ``reduction.keep``, with its steps inside.

    Yields:
        Video tokens at each LLM layer; complete once the model has run.

    Raises:
        NotDefined: the LLM has layers that see a window only.
    """
    layers = video_llm.decoder_layers
    counts = [len(reduction.keep)] * len(layers)
    if reduction.inside is None:
        yield counts
        return
    decoder = video_llm.model.get_decoder()
    if set(getattr(decoder.config, "layer_types", None) or ()) - {"full_attention"}:
        raise NotDefined("the language model has layers of sliding or linear attention, whose caches count columns")
    run = _Run(reduction.inside, encoded, reduction.keep, counts)
    handles = [
        layer.register_forward_pre_hook(run.hook(number), with_kwargs=True) for number, layer in enumerate(layers)
    ]
    try:
        with listening(decoder, {layer.self_attn: run.hear for layer in layers}):
            yield counts
    finally:
        for handle in handles:
            handle.remove()


@dataclass(eq=False)
class _Run:
    """One prompt on its way through the layers."""

    inside: Inside
    encoded: Encoded
    keep: Tensor  # (k,)
    counts: list[int]  # video tokens by layer
    steps: dict[int, Merge | None] = field(default_factory=dict)  # decided in the first pass
    columns: dict[int, Tensor] = field(default_factory=dict)  # (S',) prompt columns alive in a layer
    whole: bool = True  # this pass reads the whole prompt (else: one new column, with a cache)
    heard: tuple[Tensor, Tensor, float] | None = None

    def __post_init__(self) -> None:
        prompt = kept_columns(self.encoded, self.keep[None].to(self.encoded.video_columns.device))[0].cpu()
        self.is_video = torch.isin(prompt, self.encoded.video_columns.cpu())
        self.grid = torch.full((len(prompt),), -1, dtype=torch.long)
        self.grid[self.is_video] = self.keep
        self.columns[0] = torch.arange(len(prompt))

    def hear(self, query: Tensor, key: Tensor, scale: float) -> None:
        """Queries and keys of the layer that has just run."""
        self.heard = (query, key, scale) if query.shape[2] > 1 else None

    def hook(self, layer: int) -> Any:  # noqa: ANN401 - torch's hook type
        """The pre-hook of decoder layer ``layer``."""

        def before(_module: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
            hidden: Tensor = args[0]
            if layer == 0:
                self.whole = hidden.shape[1] >= len(self.columns[0])
                return None
            if self.whole:
                if layer not in self.steps:
                    self._decide(layer, hidden)
                hidden = self._shrunk(layer, hidden)
            if len(self.columns[layer]) == len(self.columns[0]):
                return None
            return (hidden, *args[1:]), kwargs | self._cut(layer, kwargs)

        return before

    def _decide(self, layer: int, hidden: Tensor) -> None:
        columns = self.columns[layer - 1]
        video = self.is_video[columns].nonzero().squeeze(1)
        step = None
        # Deepstack levels are added to all video columns behind the first layers, which must still be there.
        if layer >= len(self.encoded.deepstack):
            assert self.heard is not None
            rows = hidden[0, video.to(hidden.device)]
            seen = tuple(self.counts[:layer])
            view = LayerView(layer, len(self.counts), self.grid[columns[video]], rows, seen, video, self.heard)
            step = self.inside.step(view)
        self.steps[layer] = step
        alive = torch.ones(len(columns), dtype=torch.bool)
        if step is not None:
            alive[video] = False
            alive[video[step.kept]] = True
            self.counts[layer:] = [len(step.kept)] * (len(self.counts) - layer)
        self.columns[layer] = columns[alive]

    def _shrunk(self, layer: int, hidden: Tensor) -> Tensor:
        """(B, S', D) what is left of the columns that the layer before gave."""
        step = self.steps[layer]
        if step is None:
            return hidden
        before = self.columns[layer - 1]
        alive = torch.isin(before, self.columns[layer])
        more = torch.ones(hidden.shape[1] - len(before), dtype=torch.bool)  # new columns of a pass without cache
        left = hidden[:, torch.cat([alive, more]).to(hidden.device)]
        if step.only_drops:
            return left
        video = self.is_video[before].nonzero().squeeze(1).to(hidden.device)
        places = self.is_video[self.columns[layer]].nonzero().squeeze(1).to(hidden.device)
        rows = torch.stack([step.rows(each[video]) for each in hidden])
        return left.index_copy(1, places, rows)

    def _cut(self, layer: int, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Mask and positions, which the model made for all columns, as this layer needs them."""
        columns, prompt = self.columns[layer], len(self.columns[0])

        def cut(tensor: Tensor, dim: int) -> Tensor:
            alive = torch.cat([columns, torch.arange(prompt, tensor.shape[dim])]).to(tensor.device)
            return tensor.index_select(dim, alive)

        found: dict[str, Any] = {}
        mask = kwargs.get("attention_mask")
        if mask is not None:
            found["attention_mask"] = cut(cut(mask, -2) if self.whole else mask, -1)
        if self.whole:
            found["position_embeddings"] = tuple(cut(each, -2) for each in kwargs["position_embeddings"])
            if kwargs.get("position_ids") is not None:
                found["position_ids"] = cut(kwargs["position_ids"], -1)
        return found
