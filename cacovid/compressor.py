"""Compress a video for a question: the library's front door.

    compressor = Compressor.from_pretrained("runs/demo/policy")
    clip = compressor("clip.mp4", "what color is the ring object?", retention=0.1)
    print(clip.answer(), len(clip.kept), "of", clip.encoded.grid.tokens)

Shape legend: N video tokens, T frames (temporal steps), k retained tokens, F decoded frames.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Self

import torch
from PIL.Image import Image
from torch import Tensor

from cacovid.answering.prompting import format_prompt, option_letters
from cacovid.config import ModelConfig, SelectionConfig
from cacovid.data.video import DecodedVideo, read_frames, read_in_chunks, read_some
from cacovid.drawing.kept import draw_kept_tokens
from cacovid.drawing.scores import ScoredClip, draw_frame_scores, draw_token_scores
from cacovid.errors import UserError
from cacovid.limits import MAX_FRAMES
from cacovid.methods.selection import budget, select_tokens, top_tokens
from cacovid.models.adapter import VideoLLM
from cacovid.models.chunks import watch_in_chunks
from cacovid.models.encoded import Encoded
from cacovid.models.loading import load_video_llm
from cacovid.policy.base import CompressionPolicy
from cacovid.policy.files import PolicyMetadata
from cacovid.records import ProblemType, VideoQuestion

SHOWN = 32  # frames held of a clip that was read in chunks


@dataclass(frozen=True)
class Timings:
    """Wall-clock seconds of one compression; the first one after loading is slower than all others."""

    decode: float  # reading frames from the file; 0 for frames given
    encode: float  # processor, vision tower and projector
    policy: float  # scoring and selecting tokens


@dataclass(frozen=True, eq=False)
class CompressedVideo:
    """One question with the video tokens retained for it, ready to be answered."""

    video: DecodedVideo  # the F sampled frames with their times
    question: str
    options: tuple[str, ...]
    encoded: Encoded  # the whole prompt with all N video tokens
    kept: Tensor  # (k,) int64 ascending retained token indices, on the CPU
    token_scores: Tensor  # (N,) float32 keep minus drop, on the CPU
    frame_scores: Tensor  # (T,) float32
    timings: Timings
    video_llm: VideoLLM
    shown: Tensor | None = None  # (F,) int64 frames that `video` holds, of a clip read in chunks; None: all

    @property
    def whole(self) -> Tensor:
        """(N,) int64 all token indices, on the CPU."""
        return torch.arange(self.encoded.grid.tokens)

    def answer(self, *, all_tokens: bool = False, max_new_tokens: int | None = None) -> str:
        """The Video-LLM's answer from the retained (or from all) video tokens.

        With options it is the letter of the likeliest one, read off the prefill; without, a greedy
        continuation of at most ``max_new_tokens`` (default: the model configuration's).
        """
        keep = self._keep(all_tokens)
        if not self.options:
            return self.video_llm.generate(self.encoded, keep, max_new_tokens)[0]
        letters = option_letters(len(self.options))
        logits = self.video_llm.first_logits(self.encoded, keep)[0]
        return letters[int(logits[self.video_llm.option_tokens(letters)].argmax())]

    def prefill_seconds(self, repeats: int = 5) -> tuple[float, float]:
        """Median times of the language model's pass over the prompt with the retained and with all video tokens.

        Each is warmed up once, then they take turns: what else the machine does meanwhile slows both alike.
        """
        device = self.video_llm.device
        keeps = (self._keep(False), self._keep(True))
        for keep in keeps:
            self.video_llm.first_logits(self.encoded, keep)
        times: tuple[list[float], list[float]] = ([], [])
        for _ in range(repeats):
            for keep, taken in zip(keeps, times, strict=True):
                started = _now(device)
                self.video_llm.first_logits(self.encoded, keep)
                taken.append(_now(device) - started)
        return median(times[0]), median(times[1])

    def prompt_tokens(self, *, all_tokens: bool = False) -> int:
        """Length of the prompt that the language model reads: text and video tokens."""
        return self.encoded.text_length + self._keep(all_tokens).shape[1]

    def kept_per_frame(self) -> Tensor:
        """(T,) int64 retained tokens of each temporal step."""
        grid = self.encoded.grid
        return torch.bincount(self.kept // grid.per_frame, minlength=grid.frames)

    def draw(self, lines: Sequence[str] = ()) -> Image:
        """The retained tokens over the frames, with ``lines`` of text above."""
        seen = self._scored()
        return draw_kept_tokens(seen.frames, seen.grid, seen.kept, timestamps=seen.timestamps, lines=lines)

    def draw_scores(self, title: str = "") -> dict[str, Image]:
        """What the policy saw: 'frame-scores' along time, and 'token-scores' as a heat map over the frames."""
        scored = self._scored()
        return {"frame-scores": draw_frame_scores(scored, title), "token-scores": draw_token_scores(scored, title)}

    def _scored(self) -> ScoredClip:
        """What there is to draw: all frames, or those that are held."""
        frames, times, grid = self.video.frames, self.video.timestamps, self.encoded.grid
        if self.shown is None:
            return ScoredClip(frames, times, grid, self.token_scores, self.frame_scores, self.kept)
        place = torch.full((grid.frames,), -1).index_copy(0, self.shown, torch.arange(len(self.shown)))
        frame = place[self.kept // grid.per_frame]
        kept = (frame * grid.per_frame + self.kept % grid.per_frame)[frame >= 0]
        scores = self.token_scores.unflatten(0, (grid.frames, grid.per_frame))[self.shown].flatten()
        part = grid._replace(frames=len(self.shown))
        return ScoredClip(frames, times, part, scores, self.frame_scores[self.shown], kept)

    def _keep(self, all_tokens: bool) -> Tensor:
        """(1, k) or (1, N) indices on the model's device."""
        return (self.whole if all_tokens else self.kept)[None].to(self.video_llm.device)


class Compressor:
    """A frozen Video-LLM with a trained compression policy.

    Args:
        policy: in evaluation mode; it is moved to the model's device.
        video_llm: the model that the policy was trained for.
        selection: which tokens are retained; None takes the rule the policy was saved with.

    Raises:
        UserError: the policy belongs to another model.
    """

    def __init__(
        self, policy: CompressionPolicy, video_llm: VideoLLM, *, selection: SelectionConfig | None = None
    ) -> None:
        policy.check_model(video_llm.fingerprint, video_llm.hidden_size)
        self.policy = policy.to(video_llm.device).eval()
        self.video_llm = video_llm
        self.selection = policy.metadata.selection if selection is None else selection

    @classmethod
    def from_pretrained(
        cls,
        policy: str | os.PathLike[str],
        model: str | ModelConfig | None = None,
        *,
        selection: SelectionConfig | None = None,
    ) -> Self:
        """Load a policy folder and its Video-LLM.

        Args:
            policy: the ``policy`` folder of a training run.
            model: 'embedded', a local folder or a hub id, read with the policy's own frame count and
                positions; a :class:`ModelConfig` for full control; None takes the model that the
                policy was trained with.
            selection: rule that retains tokens; None takes the policy's.

        Raises:
            UserError: nothing to load there, or the policy belongs to another model.
        """
        trained = CompressionPolicy.from_pretrained(os.fspath(policy))
        config = model if isinstance(model, ModelConfig) else model_config_for(trained.metadata, model)
        return cls(trained, load_video_llm(config), selection=selection)

    def __call__(
        self,
        video: str | os.PathLike[str] | DecodedVideo,
        question: str,
        retention: float = 0.1,
        *,
        options: Sequence[str] = (),
        num_frames: int | None = None,
        chunk_frames: int | None = None,
    ) -> CompressedVideo:
        """Read the video and retain ``max(1, floor(retention * N))`` of its tokens for ``question``.

        Args:
            video: any file that PyAV decodes, or frames already decoded.
            question: without options.
            retention: share of video tokens to keep, in (0, 1].
            options: option texts without letters, for multiple choice.
            num_frames: frames to sample from a file; None takes the model configuration's.
            chunk_frames: for a long video in a file: read, encode and score so many frames at a time, with the memory
                of these and the same result but for the last digits. The clip then holds the frames of which most
                is kept, at most ``SHOWN``. None: all at once.

        Raises:
            BadItem: the video cannot be read.
            UserError: chunks of decoded frames, or for a model or policy that reads a clip as a whole; an empty
                question or option, a single option, a ratio outside (0, 1], frames outside 1 to ``MAX_FRAMES``.
        """
        budget(retention, 1)  # refuses a bad ratio before any work
        _check_frames(num_frames)
        prompt = self._prompt(question, tuple(options))
        if chunk_frames is not None:
            return self._in_chunks(video, question, tuple(options), prompt, retention, num_frames, chunk_frames)
        started = time.perf_counter()
        if isinstance(video, DecodedVideo):
            decoded, decode_s = video, 0.0
        else:
            wanted = self.video_llm.config.num_frames if num_frames is None else num_frames
            decoded = read_frames(video, wanted)
            decode_s = time.perf_counter() - started
        device = self.video_llm.device
        started = _now(device)
        encoded = self.video_llm.encode(self.video_llm.watch(decoded.frames, fps=decoded.fps), prompt)
        encoded_at = _now(device)
        output = self.policy.logits([encoded.policy_input()])
        token_scores, frame_scores = output.token_scores[0].float().cpu(), output.frame_scores[0].float().cpu()
        kept = select_tokens(token_scores, frame_scores, encoded.grid, retention, self.selection)
        return CompressedVideo(
            video=decoded,
            question=question,
            options=tuple(options),
            encoded=encoded,
            kept=kept,
            token_scores=token_scores,
            frame_scores=frame_scores,
            timings=Timings(decode_s, encoded_at - started, _now(device) - encoded_at),
            video_llm=self.video_llm,
        )

    def _in_chunks(
        self,
        video: str | os.PathLike[str] | DecodedVideo,
        question: str,
        options: tuple[str, ...],
        prompt: str,
        retention: float,
        num_frames: int | None,
        chunk: int,
    ) -> CompressedVideo:
        if isinstance(video, DecodedVideo) or chunk < 1:
            raise UserError(f"chunk_frames is {chunk}: give 1 or more, and the video as a file")
        llm, wanted = self.video_llm, num_frames or self.video_llm.config.num_frames
        started = _now(llm.device)
        parts, fps = read_in_chunks(video, wanted, chunk)
        encoded = llm.encode(watch_in_chunks(llm, (part.frames for part in parts), fps=fps), prompt)
        encoded_at = _now(llm.device)
        steps = max(1, chunk * encoded.grid.frames // wanted)
        output = self.policy.logits_in_chunks(encoded.policy_input(), steps)
        token_scores, frame_scores = output.token_scores[0].float().cpu(), output.frame_scores[0].float().cpu()
        kept = select_tokens(token_scores, frame_scores, encoded.grid, retention, self.selection)
        scored_at = _now(llm.device)
        counts = torch.bincount(kept // encoded.grid.per_frame, minlength=encoded.grid.frames)
        shown = top_tokens(counts.double(), min(SHOWN, encoded.grid.frames))
        return CompressedVideo(
            video=read_some(video, wanted, (shown * wanted // encoded.grid.frames).tolist()),
            question=question,
            options=options,
            encoded=encoded,
            kept=kept,
            token_scores=token_scores,
            frame_scores=frame_scores,
            timings=Timings(0.0, encoded_at - started, scored_at - encoded_at),
            video_llm=llm,
            shown=shown,
        )

    def _prompt(self, question: str, options: tuple[str, ...]) -> str:
        if not question.strip():
            raise UserError("the question is empty: ask something about the video")
        if len(options) == 1:
            raise UserError(f"one option ({options[0]!r}) leaves no choice: give two or more, or none")
        if not all(option.strip() for option in options):
            raise UserError(f"an option of {list(options)} is empty: fill it or leave it out")
        problem_type: ProblemType = "multiple choice" if options else "free-form"
        item = VideoQuestion("", "", question, options, "", problem_type, "")
        return format_prompt(item, self.policy.metadata.instruction)


def model_config_for(
    metadata: PolicyMetadata, model: str | None = None, *, num_frames: int | None = None
) -> ModelConfig:
    """How to load the Video-LLM that a policy compresses for: ``model``, else the one it was trained with.

    Raises:
        UserError: the policy names no model and none is given; frames outside 1 to ``MAX_FRAMES``.
    """
    _check_frames(num_frames)
    path = metadata.model_path if model is None else model
    if not path:
        raise UserError("the policy does not say which model it was trained with: name it (--model)")
    return ModelConfig(
        path=path,
        num_frames=num_frames or metadata.num_frames,
        positions=metadata.positions,
        trained_length=metadata.trained_length,
    )


def _check_frames(num_frames: int | None) -> None:
    if num_frames is not None and not 1 <= num_frames <= MAX_FRAMES:
        raise UserError(f"num_frames is {num_frames}: sample 1 to {MAX_FRAMES} frames, or leave it out")


def _now(device: torch.device) -> float:
    """Seconds, with all work queued on a GPU finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
