"""Rewards of the second world's model by kind of question, from what it really answers."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean

import torch

from cacovid.answering.prompting import format_prompt
from cacovid.answering.scoring import score
from cacovid.embedded.second.questions import scene_records
from cacovid.embedded.second.scenes import draw_scene
from cacovid.embedded.video_writer import round_trip
from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import Encoded
from cacovid.records import VideoQuestion

Keep = Callable[[VideoQuestion, Encoded], torch.Tensor]


def everything(item: VideoQuestion, encoded: Encoded) -> torch.Tensor:
    """(1, N): all video tokens."""
    return torch.arange(encoded.policy_input().grid.tokens)[None]


def rewards(
    video_llm: VideoLLM, seeds: Sequence[int], keep: Keep = everything, *, decoded: bool = False
) -> dict[str, float]:
    """Mean reward of each kind of question on scenes of ``seeds``.

    Args:
        keep: The (1, k) retained tokens of a question.
        decoded: Read the frames back from H.264 instead of taking them as drawn.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for seed in seeds:
        scene = draw_scene(seed)
        features = video_llm.watch(round_trip(scene.frames) if decoded else scene.frames)
        for item in scene_records(scene, ""):
            encoded = video_llm.encode(features, format_prompt(item))
            found[item.question_type].append(float(score(video_llm, encoded, item, keep(item, encoded)).reward))
    return {kind: round(fmean(values), 4) for kind, values in found.items()}
