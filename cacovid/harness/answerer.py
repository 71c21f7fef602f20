"""Answers a chat about videos from the tokens that one method retains. Knows nothing of lmms-eval.

messages -> text and clips -> encoded -> method -> reduction -> greedy answer
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cacovid.compressor import model_config_for
from cacovid.config import SelectionConfig
from cacovid.data.video import read_frames
from cacovid.errors import UserError
from cacovid.methods.protocol import EvaluationCase, Method, needs_tower_attention, reduction_by
from cacovid.methods.registry import BASELINES, POLICY, build_methods, check_names
from cacovid.methods.selection import budget
from cacovid.models.encoded import VideoFeatures
from cacovid.models.inside import answering_with
from cacovid.models.loading import load_video_llm
from cacovid.models.reduction import Reduction
from cacovid.policy.base import CompressionPolicy
from cacovid.policy.files import PolicyMetadata
from cacovid.policy_folder import policy_folder
from cacovid.records import Clip, VideoQuestion

_OPTIONS = re.compile(r"^\s*\(?A[.):]\s", re.MULTILINE)  # the line of the first one


@dataclass(frozen=True)
class Answer:
    """A text, and what it took."""

    text: str
    prompt_tokens: int  # that enter the language model: text and retained video tokens
    new_tokens: int


class Answerer:
    """A frozen Video-LLM with one compression method.

    Args:
        pretrained: 'embedded', a folder or a hub id; None takes the policy's model.
        policy: policy or run folder; None goes with a training-free method, or with all tokens.
        method: a training-free method's name; None takes the policy, else all tokens.
        retention: share of video tokens to keep, in (0, 1].
        num_frames: frames to sample of a video; None takes the policy's.
        selection: rule of the policy; None takes its own.
        device: torch device; None takes a GPU where there is one.
        seed: of random methods.

    Raises:
        UserError: Nothing to load there, an unknown method or one that knows the answer, a ratio outside (0, 1].
    """

    def __init__(
        self,
        pretrained: str | None = None,
        policy: str | None = None,
        *,
        method: str | None = None,
        retention: float = 0.1,
        num_frames: int | None = None,
        selection: SelectionConfig | None = None,
        device: str | None = None,
        seed: int = 0,
    ) -> None:
        budget(retention, 1)  # refuses a bad ratio before anything is loaded
        trained = None if policy is None else CompressionPolicy.from_pretrained(policy_folder(Path(policy)))
        metadata = PolicyMetadata() if trained is None else trained.metadata
        if method is not None:
            check_names([method])
            if method in BASELINES and BASELINES[method].needs_evidence:
                raise UserError(f"method {method!r} reads where the answer is: choose another one for a harness")
        if method is None and trained is not None:
            method = POLICY
        config = model_config_for(metadata, pretrained, num_frames=num_frames)
        self.video_llm = load_video_llm(config if device is None else config.model_copy(update={"device": device}))
        policies = {} if trained is None else {POLICY: trained}
        self._method: Method | None = (
            build_methods([method], policies, self.video_llm, seed=seed, selection=selection)[0] if method else None
        )
        self._attention = self._method is not None and needs_tower_attention([self._method])
        self._retention = retention
        self._seed = seed
        self._frames = config.num_frames
        self._last: tuple[Clip, VideoFeatures] | None = None  # questions about one video follow each other

    def answer(self, messages: Sequence[Mapping[str, Any]], name: str, max_new_tokens: int) -> Answer:
        """The greedy continuation of a chat.

        Args:
            messages: with parts ``{"type": "text", "text"}`` and ``{"type": "video", "url"}``,
                the latter with ``start_time`` and ``end_time`` in seconds if only that segment is watched.
            name: of the question, which random methods draw by.

        Raises:
            BadItem: A video that cannot be read.
            UserError: A part that is neither text nor a video file.
            NotDefined: The method does not cover this model, clip or budget.
        """
        clips, chat = _split(messages)
        encoded = self.video_llm.encode_chat(chat, [self._watch(clip) for clip in clips])
        whole = torch.arange(encoded.grid.tokens if clips else 0)
        reduction = Reduction(whole)
        if self._method is not None and clips:
            item = VideoQuestion(name, clips[0].video, question_of(chat), (), "", "free-form", "harness")
            reduction = reduction_by(self._method, EvaluationCase(item, encoded, self._seed), self._retention)
        seen = reduction.applied(encoded)
        with answering_with(self.video_llm, seen, reduction):
            answers = self.video_llm.answer(seen, reduction.keep[None].to(self.video_llm.device), max_new_tokens)
        return Answer(answers.texts[0], seen.text_length + len(reduction.keep), len(answers.tokens[0]))

    def _watch(self, clip: Clip) -> VideoFeatures:
        if self._last is None or self._last[0] != clip:
            video = read_frames(clip.video, self._frames, start=clip.start, end=clip.end)
            features = self.video_llm.watch(video.frames, fps=video.fps, tower_attention=self._attention)
            self._last = (clip, features)
        return self._last[1]


def _split(messages: Sequence[Mapping[str, Any]]) -> tuple[list[Clip], list[dict[str, Any]]]:
    """Videos in their order, and the chat as transformers' templates take it."""
    clips: list[Clip] = []
    chat: list[dict[str, Any]] = []
    for message in messages:
        parts: list[dict[str, str]] = []
        for part in message["content"]:
            if part["type"] == "text":
                parts.append({"type": "text", "text": part["text"]})
            elif part["type"] == "video" and isinstance(part["url"], str):
                clips.append(Clip(part["url"], part.get("start_time"), part.get("end_time")))
                parts.append({"type": "video"})
            else:
                raise UserError(
                    f"a message holds {part['type']} ({type(part.get('url')).__name__}): "
                    "only text and video files are understood; choose tasks of these"
                )
        chat.append({"role": message["role"], "content": parts})
    return clips, chat


def question_of(chat: Sequence[Mapping[str, Any]]) -> str:
    """What is asked, without lettered options: some methods compare tokens with the question's words alone."""
    text = "\n".join(part["text"] for turn in chat for part in turn["content"] if part["type"] == "text")
    return _OPTIONS.split(text, maxsplit=1)[0].strip() or text
