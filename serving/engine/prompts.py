"""A request into an encoded prompt with the tokens to keep.

Shape legend: N video tokens, k retained tokens.
"""

import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from cacovid.config import Numbering, Positions
from cacovid.errors import NotDefined
from cacovid.methods.protocol import Baseline, EvaluationCase
from cacovid.methods.registry import BASELINES
from cacovid.methods.selection import budget, select_tokens
from cacovid.models.adapter import VideoLLM
from cacovid.models.encoded import Encoded
from cacovid.policy.base import CompressionPolicy
from cacovid.records import VideoQuestion
from serving.config import EngineConfig
from serving.engine.encoder import Encoder
from serving.engine.records import ALL, LAST, POLICY, CompressionWish, EngineRequest, Event, Grid, Report, Timings
from serving.errors import ApiError, invalid
from serving.media.records import Clip

# Those that choose among tokens by what every request has; what merges them or acts within the LLM is for evaluation.
SERVED = {
    name: method
    for name, method in BASELINES.items()
    if issubclass(method, Baseline) and not method.needs_evidence and not method.needs_tower_attention
}
TRAINING_FREE = tuple(SERVED)
_OPTION = re.compile(r"^[A-Z][.)] ", re.MULTILINE)


@dataclass(eq=False)
class Job:
    """One request in the engine's hands; ``sink`` takes its events from the engine's thread."""

    request: EngineRequest
    clips: Sequence[Clip]
    sink: Callable[[Event], None]
    submitted: float = field(default_factory=time.perf_counter)
    started: float = 0.0
    others_s: float = 0.0  # that other requests took between the chunks of its long video
    cancelled: threading.Event = field(default_factory=threading.Event)
    ended: bool = False  # its last event has gone out
    _on_cancel: list[Callable[[], object]] = field(default_factory=list)

    @property
    def long(self) -> Clip | None:
        """The clip that is read in chunks, if there is one."""
        return next((clip for clip in self.clips if clip.chunk is not None), None)

    def on_cancel(self, call: Callable[[], object]) -> None:
        """Have ``call`` made when nobody waits any more; at once if that is so."""
        self._on_cancel.append(call)
        if self.cancelled.is_set():
            call()

    def cancel(self) -> None:
        """Nobody waits any more."""
        self.cancelled.set()
        for call in self._on_cancel:
            call()

    def emit(self, event: Event) -> None:
        """Hand ``event`` on; nothing follows the last one."""
        if not self.ended:
            self.ended = isinstance(event, LAST)
            self.sink(event)


@dataclass(eq=False)
class Prompt:
    """A job on its way: encoded, then scored and selected."""

    job: Job
    policy: CompressionPolicy | None
    method: str
    retention: float
    positions: Numbering
    encoded: Encoded
    encode_s: float
    steps: int | None = None  # temporal steps that the policy scores at a time; None: all
    policy_s: float = 0.0
    kept: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))  # (k,) on the CPU
    token_scores: Tensor | None = None  # (N,)
    frame_scores: Tensor | None = None  # (T,)

    @property
    def request(self) -> EngineRequest:
        """What the job asks."""
        return self.job.request

    @property
    def length(self) -> int:
        """Columns of the compressed prompt."""
        return self.encoded.text_length + len(self.kept)

    @property
    def next_position(self) -> int:
        """Position id of the first answer token."""
        original = int(self.encoded.position_ids[-1].max()) + 1 if self.encoded.position_ids.numel() else 0
        return self.length if self.positions == "contiguous" else original

    def report(self, first_token_s: float = 0.0, generate_s: float = 0.0) -> Report:
        """What was kept and how long it took so far, for the client."""
        timings = Timings(
            queue=self.job.started - self.job.submitted,
            fetch=sum(clip.fetch_s for clip in self.job.clips),
            decode=sum(clip.decode_s for clip in self.job.clips),
            encode=self.encode_s,
            policy=self.policy_s,
            first_token=first_token_s,
            generate=generate_s,
        )
        return Report(
            model=self.request.model,
            method=self.method,
            retention=self.retention,
            positions=self.positions,
            grid=Grid(*self.encoded.grid),
            video_tokens=self.encoded.grid.tokens,
            video_tokens_kept=len(self.kept),
            prompt_tokens=self.encoded.length,
            prompt_tokens_kept=self.length,
            timings=timings,
        )


class PromptBuilder:
    """Encodes requests for one Video-LLM. For one thread."""

    def __init__(self, video_llm: VideoLLM, config: EngineConfig) -> None:
        self._llm = video_llm
        self._config = config
        self._encoder = Encoder(video_llm, config.feature_cache_bytes)
        self._baselines = {name: method.for_model(video_llm) for name, method in SERVED.items()}
        text = video_llm.model.config.get_text_config()
        self._max_position = int(text.max_position_embeddings)

    def encode(self, job: Job, policy: CompressionPolicy | None, between: Callable[[], object] = tuple) -> Prompt:
        """Check, run the tower where the clip is not cached, and tokenise.

        ``between`` is called after each chunk of a long video.

        Raises:
            ApiError: wishes that do not fit, control tokens in the text, a prompt that is too long.
        """
        request = job.request
        method, retention = _method(request.compression, policy, self._config.default_retention)
        if method != ALL and not job.clips:
            method, retention = ALL, 1.0  # nothing to compress
        if job.long is not None:
            check_chunks(job, job.long, self._llm, policy if method == POLICY else None)

        def after_chunk(tokens: int) -> None:
            _check_fits(tokens, self._config.max_prompt_tokens)  # an hour that cannot fit is not encoded to its end
            _check_fits(budget(retention, tokens), self._max_position)
            between()

        started = time.perf_counter()
        encoded = self._encoder.encode(request, job.clips, after_chunk)
        _check_fits(encoded.length, self._config.max_prompt_tokens)
        return Prompt(
            job=job,
            policy=policy,
            method=method,
            retention=retention,
            positions=self._llm.numbering(encoded, request.compression.positions or self.positions(policy)),
            encoded=encoded,
            encode_s=time.perf_counter() - started - job.others_s,
            steps=None if job.long is None else _steps(job.long, encoded.grid.frames),
        )

    def positions(self, policy: CompressionPolicy | None) -> Positions:
        """Those of requests that name none."""
        if self._config.kind == "upstream":
            return "contiguous"  # a server elsewhere numbers prompts itself
        return self._llm.config.positions if policy is None else policy.metadata.positions

    def select(self, prompt: Prompt) -> None:
        """Choose exactly ``budget(retention, N)`` tokens by the prompt's method.

        Raises:
            ApiError: no word of the question to compare with, or no room for the answer behind the prompt.
            UserError: scores that are not finite.
        """
        tokens = prompt.encoded.grid.tokens
        if prompt.method == ALL:
            prompt.kept = torch.arange(tokens)
        elif prompt.method == POLICY:
            assert prompt.policy is not None
            assert prompt.token_scores is not None
            assert prompt.frame_scores is not None
            selection = prompt.policy.metadata.selection
            prompt.kept = select_tokens(
                prompt.token_scores, prompt.frame_scores, prompt.encoded.grid, prompt.retention, selection
            )
        else:
            question = _question(prompt.request)
            if not self._llm.processor.tokenizer(question, add_special_tokens=False)["input_ids"]:
                raise invalid("messages", "the last user message holds no word that the model knows: ask something")
            item = VideoQuestion("", "", question, (), "", "free-form", "")
            case = EvaluationCase(item, prompt.encoded, seed=0)
            try:
                prompt.kept = self._baselines[prompt.method].select(case, prompt.retention).cpu()
            except NotDefined as error:
                raise invalid("compression.retention", f"{error}: keep more") from error
            assert len(prompt.kept) == budget(prompt.retention, tokens)
        self._check_length(prompt)

    def _check_length(self, prompt: Prompt) -> None:
        """Refuse a prompt whose answer would leave the positions that the model knows."""
        wanted = prompt.next_position + (prompt.request.decoding.max_tokens if prompt.request.decoding else 0)
        _check_fits(wanted, self._max_position)


def run_policy(prompts: Sequence[Prompt]) -> None:
    """Run one policy on prompts of one grid, all of which name it, and keep its scores; a long video comes alone."""
    policy, steps = prompts[0].policy, prompts[0].steps
    assert policy is not None
    inputs = [prompt.encoded.policy_input() for prompt in prompts]
    output = policy.logits(inputs) if steps is None else policy.logits_in_chunks(inputs[0], steps)
    for place, prompt in enumerate(prompts):
        prompt.token_scores = output.token_scores[place].float().cpu()
        prompt.frame_scores = output.frame_scores[place].float().cpu()


def methods_of(policy: CompressionPolicy | None) -> tuple[str, ...]:
    """What ``compression.method`` may be for a model id."""
    return (*((POLICY,) if policy is not None else ()), *TRAINING_FREE, ALL)


def check_chunks(job: Job, clip: Clip, llm: VideoLLM, policy: CompressionPolicy | None) -> None:
    """Raises ApiError where a video of so many frames cannot be read in chunks; ``policy`` is what selects."""
    if not llm.takes_chunks:
        lacking = f"models of type {llm.kind} read a video as a whole"
    elif policy is None:
        lacking = "only method 'policy' reads a video in parts"
    elif not policy.takes_chunks:
        lacking = f"this model's policy, of kind {policy.kind!r}, reads a video as a whole"
    elif len(job.clips) > 1:
        lacking = "a request holds no other video beside one of so many"
    elif "frames" in job.request.extras:
        lacking = "the frames of so many are not sent back"
    else:
        return
    raise invalid(
        "media_io_kwargs.video.num_frames",
        f"{len(clip.frames)} frames of a video, which this service reads {clip.chunk} at a time: {lacking}; "
        f"ask for at most {clip.chunk} frames",
    )


def _steps(clip: Clip, steps: int) -> int:
    """Of ``steps`` in the clip's grid those of one chunk."""
    assert clip.chunk is not None
    return max(1, clip.chunk * steps // len(clip.frames))


def _method(wish: CompressionWish, policy: CompressionPolicy | None, default: float) -> tuple[str, float]:
    """Method and retention; a model id without a policy keeps all tokens unless another method is named."""
    method = wish.method or (ALL if policy is None else POLICY)
    if method not in methods_of(policy):
        known = ", ".join(methods_of(policy))
        raise invalid("compression.method", f"this model has no method {method[:64]!r}: choose of {known}")
    if method != ALL:
        return method, default if wish.retention is None else wish.retention
    if wish.retention not in (None, 1.0):
        raise invalid(
            "compression.retention", "method 'all' keeps every token: name another method, or a model with a policy"
        )
    return ALL, 1.0


def _question(request: EngineRequest) -> str:
    """The last user turn's text up to its lettered options."""
    turns = [message for message in request.messages if message["role"] == "user"]
    text = "\n".join(part["text"] for part in turns[-1]["content"] if part["type"] == "text") if turns else ""
    option = _OPTION.search(text)
    return text[: option.start()] if option else text


def _check_fits(found: int, limit: int) -> None:
    if found > limit:
        raise ApiError(
            422,
            "context_length_exceeded",
            f"prompt and answer need {found} tokens, at most {limit} fit: "
            "send fewer frames or less text, or ask for a lower retention or max_tokens",
            "messages",
        )
