"""Steps within the LLM that several baselines share."""

from dataclasses import dataclass
from typing import Self

from cacovid.methods.protocol import EvaluationCase, ReducingBaseline
from cacovid.methods.selection import top_tokens
from cacovid.methods.sharing import Stages, cut_layer, stages
from cacovid.models.adapter import VideoLLM
from cacovid.models.layer_view import LayerView
from cacovid.models.reduction import Merge


class InsideBaseline(ReducingBaseline):
    """One that cuts tokens at a layer of the LLM, given for 28 layers.

    Args:
        layers: of the LLM.
    """

    published_layer: int
    share: float  # of the tokens that the layers behind the cut see

    def __init__(self, layers: int) -> None:
        self.layers = layers

    @classmethod
    def for_model(cls, video_llm: VideoLLM) -> Self:
        """With the depth of ``video_llm``."""
        return cls(len(video_llm.decoder_layers))

    def stages(self, case: EvaluationCase, retention: float) -> Stages:
        """Tokens before and behind the cut, whose mean over the layers is the budget.

        Raises:
            NotDefined: the LLM has no layer to cut at.
        """
        layer = cut_layer(self.published_layer, self.layers, len(case.encoded.deepstack))
        return stages(case.budget(retention), case.input.grid.tokens, self.layers, layer, self.share)


@dataclass(frozen=True)
class KeepMostAttended:
    """At ``layer`` keep the ``count`` tokens of most attention in the layer before; ties go to the lower index."""

    layer: int
    count: int
    by_text: bool = False  # the most of any head and text column; else the last column's mean over heads

    def step(self, view: LayerView) -> Merge | None:
        """As :meth:`cacovid.models.reduction.Inside.step`."""
        if view.layer != self.layer or self.count >= len(view.tokens):
            return None
        attention = view.text_queries() if self.by_text else view.last_query()
        return Merge.keeping(top_tokens(attention, self.count), len(view.tokens))
