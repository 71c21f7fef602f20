"""The paper's blind test: questions that are answered right without the video carry no signal.

Source: Ma et al., training setting; such items are dropped before training. Answers are kept in a file as they come,
so that a test that was stopped goes on.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cacovid.answering.prompting import format_prompt
from cacovid.answering.scoring import score
from cacovid.errors import BadItem, UserError
from cacovid.models.adapter import VideoLLM
from cacovid.records import VideoQuestion


class BlindAnswer(NamedTuple):
    """What became of one question."""

    id: str
    reward: float | None  # of the answer; None where the question cannot be used
    reason: str = ""  # why not


def ask(video_llm: VideoLLM, items: Iterable[VideoQuestion], instruction: str) -> list[BlindAnswer]:
    """Ask each question without its video; one that cannot be used comes back with its reason."""
    answers = []
    for item in items:
        try:
            answers.append(BlindAnswer(item.id, blind_reward(video_llm, item, instruction)))
        except BadItem as error:
            answers.append(BlindAnswer(item.id, None, str(error)))
    return answers


def blind_reward(video_llm: VideoLLM, item: VideoQuestion, instruction: str = "") -> float:
    """Reward of the answer to the question's text alone.

    Raises:
        BadItem: the item's answer cannot be used.
    """
    content = [{"type": "text", "text": format_prompt(item, instruction)}]
    encoded = video_llm.encode_chat([{"role": "user", "content": content}], [])
    nothing = torch.empty(1, 0, dtype=torch.long, device=video_llm.device)
    return float(score(video_llm, encoded, item, nothing).reward[0])


class BlindAnswers:
    """The answers so far, in a file of JSON lines whose first one says of what they are.

    Args:
        path: Made if absent.
        settings: All that the answers depend on.

    Raises:
        UserError: The file holds answers of other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, str | int]) -> None:
        self.path = path
        self.known: dict[str, BlindAnswer] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = list(_whole_lines(path))
        if lines and lines[0] != settings:
            raise UserError(f"{path} holds answers of another table, model or setting: add --overwrite to begin anew")
        for line in lines[1:]:
            answer = BlindAnswer(**line)
            self.known[answer.id] = answer
        self._file = path.open("a", encoding="utf-8")
        if not lines:
            self._write([dict(settings)])

    def add(self, answers: Sequence[BlindAnswer]) -> None:
        """Keep answers; they outlive a kill from here on."""
        self.known |= {answer.id: answer for answer in answers}
        self._write([answer._asdict() for answer in answers])

    def _write(self, lines: Sequence[Mapping[str, object]]) -> None:
        self._file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        self._file.flush()


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file that a kill may have cut in mid-line: the rest is cut off."""
    if not path.is_file():
        return
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    os.truncate(path, len(whole))
    yield from map(json.loads, whole.splitlines())
