"""Made-up encoded questions for tests of selection methods: no model needed."""

import torch

from cacovid.methods.protocol import EvaluationCase
from cacovid.models.encoded import Encoded
from cacovid.models.tower_attention import TowerAttention
from cacovid.records import TokenGrid, VideoQuestion


def made_case(
    features: torch.Tensor,
    grid: TokenGrid,
    *,
    text: torch.Tensor | None = None,
    evidence: tuple[int, ...] = (),
    others: tuple[int, ...] = (),
    seed: int = 0,
    item_id: str = "q",
    received: torch.Tensor | None = None,
    keys: torch.Tensor | None = None,
    deepstack: tuple[torch.Tensor, ...] = (),
) -> EvaluationCase:
    """Video tokens first, then the text; with ``received`` the tower's attention is known."""
    tokens, width = features.shape
    words = torch.ones(2, width) if text is None else text
    length = tokens + len(words)
    encoded = Encoded(
        input_ids=torch.zeros(length, dtype=torch.long),
        position_ids=torch.arange(length)[None],
        grid=grid,
        features=features,
        video_columns=torch.arange(tokens),
        text_columns=torch.arange(tokens, length),
        text_embeds=words,
        pinned=torch.zeros(0, width),
        pinned_columns=torch.zeros(0, dtype=torch.long),
        reach=length,
        deepstack=deepstack,
        tower=None if received is None else TowerAttention(received, features if keys is None else keys),
    )
    item = VideoQuestion(
        item_id,
        "v.mp4",
        "what?",
        ("red", "blue"),
        "A",
        "multiple choice",
        "made",
        evidence=evidence,
        other_objects=others,
    )
    return EvaluationCase(item, encoded, seed)
