"""How many tokens the frozen model is asked to answer from, each time that it is evaluated."""

import pytest
from torch import Tensor

from cacovid.answering.scoring import Scores
from cacovid.evaluation import question
from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import Encoded
from cacovid.records import VideoQuestion


def sizes_asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by the retained tokens of every batch of answers from now on."""
    asked: list[int] = []
    plain = question.score

    def counted(video_llm: VideoLLM, encoded: Encoded, item: VideoQuestion, keep: Tensor) -> Scores:
        asked.append(keep.shape[1])
        return plain(video_llm, encoded, item, keep)

    monkeypatch.setattr(question, "score", counted)
    return asked
