"""The paper's blind test: questions that are answered right without the video carry no signal.

Source: Ma et al., training setting; such items are dropped before training.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from cacovid.answering.prompting import format_prompt
from cacovid.answering.scoring import score
from cacovid.data.skipped import SkippedItems
from cacovid.errors import BadItem
from cacovid.models.adapter import VideoLLM
from cacovid.records import VideoQuestion


class BlindOutcome(NamedTuple):
    """Which questions need their video."""

    needed: list[VideoQuestion]  # answered wrong without the video
    guessed: list[VideoQuestion]  # answered right without it


def blind_test(
    video_llm: VideoLLM,
    items: Sequence[VideoQuestion],
    instruction: str,
    right_from: float,
    skipped: SkippedItems,
    progress: Callable[[int, int], None],
) -> BlindOutcome:
    """Ask every question without its video.

    Args:
        instruction: line appended to multiple-choice prompts.
        right_from: reward from which an answer counts as right; below 1 for graded problem types.
        skipped: where questions whose answers cannot be used are set aside.
        progress: called with questions done and in all.
    """
    outcome = BlindOutcome([], [])
    for done, item in enumerate(items, start=1):
        try:
            reward = blind_reward(video_llm, item, instruction)
        except BadItem as error:
            skipped.add(item.id, item.video, str(error))
        else:
            (outcome.guessed if reward >= right_from else outcome.needed).append(item)
        progress(done, len(items))
    return outcome


def blind_reward(video_llm: VideoLLM, item: VideoQuestion, instruction: str = "") -> float:
    """Reward of the answer to the question's text alone.

    Raises:
        BadItem: the item's answer cannot be used.
    """
    content = [{"type": "text", "text": format_prompt(item, instruction)}]
    encoded = video_llm.encode_chat([{"role": "user", "content": content}], [])
    nothing = torch.empty(1, 0, dtype=torch.long, device=video_llm.device)
    return float(score(video_llm, encoded, item, nothing).reward[0])
