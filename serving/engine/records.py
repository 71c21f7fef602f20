"""What goes into an engine and what comes out of it; importable without torch.

Shape legend: N video tokens, T frames (temporal steps), k retained tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from cacovid.config import Numbering, Positions
from serving.errors import ApiError

# Of a chat, as transformers' chat templates take them; videos as {"type": "video"}, rows as {"type": "embeds"}.
Message = Mapping[str, Any]
Extra = Literal["embeddings", "prompt_embeds", "frames"]
FinishReason = Literal["stop", "length"]

ALL = "all"  # the method that keeps every token
POLICY = "policy"


class CompressionWish(BaseModel):
    """This service's extension: which video tokens the language model reads."""

    # None takes the policy's or the service's own. A part of request bodies: it goes to the engine as it is.

    model_config = ConfigDict(extra="forbid", frozen=True)

    retention: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = Field(
        None, description="share of video tokens to keep"
    )
    method: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="'policy', a training-free method, or 'all'; GET /v1/models lists them"
    )
    positions: Positions | None = Field(None, description="position ids of retained tokens")


@dataclass(frozen=True)
class Structure:
    """The form that an answer must have; only engines that constrain their draws take one."""

    kind: Literal["json_schema", "json_object", "choice", "regex", "grammar"]
    value: Any = None  # a JSON schema, the choices as a tuple, an expression, a grammar; None for 'json_object'


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn from the language model; every engine takes this record."""

    max_tokens: int
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int = 0  # of the draws where temperature > 0
    n: int = 1  # answers to draw; the i-th has the seed `seed + i`
    presence_penalty: float = 0.0  # taken from the logit of each token that the answer holds
    frequency_penalty: float = 0.0  # and this for each time
    logprobs: int | None = None  # alternatives to tell beside each token; None: no log-probabilities at all
    structure: Structure | None = None

    def choices(self) -> "list[Decoding]":
        """One record an answer, each with ``n`` 1 and its own seed."""
        return [replace(self, n=1, seed=(self.seed + index) % 2**63) for index in range(self.n)]


class Token(NamedTuple):
    """One token of an answer, as an engine drew it."""

    id: int
    logprob: float = 0.0  # natural logarithm, of the model's own distribution: before temperature, top_p and penalties
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens with theirs, as many as were asked for


@dataclass(frozen=True)
class EngineRequest:
    """One question about any number of clips; with ``decoding`` it is answered, without only compressed."""

    model: str
    messages: tuple[Message, ...]
    compression: CompressionWish = field(default_factory=CompressionWish)
    decoding: Decoding | None = None
    extras: frozenset[Extra] = frozenset()
    embeds: tuple[bytes, ...] = ()  # torch.save of (tokens, width), one for each part of rows in the messages
    prompt: str | None = None  # text to go on with, in place of messages
    time_left_s: float = 600.0  # given up afterwards


@dataclass(frozen=True)
class Timings:
    """Seconds of one request's stages. Requests of one batch share the time of common stages."""

    queue: float = 0.0  # until its batch began
    fetch: float = 0.0  # all clips; 0 for data URLs
    decode: float = 0.0
    encode: float = 0.0  # processor, vision tower, projector; 0 where the clip was cached
    policy: float = 0.0  # scores and selection
    first_token: float = 0.0  # prefill of the compressed prompt and one token
    generate: float = 0.0  # all tokens, the first included

    def milliseconds(self) -> dict[str, float]:
        """By stage, as ``usage`` reports them."""
        return {f"{name}_ms": round(1000 * seconds, 3) for name, seconds in vars(self).items()}


class Grid(NamedTuple):
    """As cacovid.records.TokenGrid, without torch behind it."""

    frames: int  # temporal steps T
    rows: int
    columns: int


@dataclass(frozen=True)
class Report:
    """What was kept of one request."""

    model: str
    method: str
    retention: float
    positions: Numbering
    grid: Grid
    video_tokens: int  # N
    video_tokens_kept: int  # k
    prompt_tokens: int  # before compression
    prompt_tokens_kept: int  # what the language model reads
    timings: Timings = Timings()


@dataclass(frozen=True)
class Started:
    """The request is valid and its answer begins."""


class Likely(NamedTuple):
    """A token and its log-probability by the model itself, before temperature, nucleus and penalties."""

    text: str
    logprob: float


class TokenLogprob(NamedTuple):
    """One token of an answer."""

    text: str
    logprob: float
    top: tuple[Likely, ...] = ()  # the likeliest tokens in its place, best first


@dataclass(frozen=True)
class Delta:
    """Further text of one answer, and the tokens since its last event where log-probabilities are wanted.

    Text may wait for later tokens: then it is empty.
    """

    text: str
    index: int = 0  # of the answer, below ``Decoding.n``
    tokens: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finished:
    """All answers are whole."""

    reasons: tuple[FinishReason, ...]  # one an answer
    completion_tokens: int  # of all answers
    report: Report


@dataclass(frozen=True)
class Failed:
    """The request was refused, before or after it began."""

    error: ApiError


@dataclass(frozen=True, eq=False)
class Compressed:
    """The tokens retained for a question, with what was asked for besides."""

    report: Report
    kept: list[int]  # (k,) ascending
    frame_budgets: list[int]  # (T,) retained tokens of each temporal step
    token_scores: list[float] | None  # (N,) keep minus drop; None for methods without a policy
    frame_scores: list[float] | None  # (T,)
    timestamps: list[float]  # seconds of the sampled frames, clips one after the other
    frames_per_step: float
    embeddings: bytes | None = None  # safetensors
    prompt_embeds: bytes | None = None  # torch.save of a dense tensor, for vLLM
    frames: list[bytes] = field(default_factory=list)  # JPEG of each sampled frame


Event = Started | Delta | Finished | Failed | Compressed
LAST = (Finished, Failed, Compressed)  # one of them ends every request


@dataclass(frozen=True)
class Answer:
    """Whole answers: one, or as many as ``Decoding.n`` asks for."""

    texts: tuple[str, ...]
    finished: Finished
    tokens: tuple[tuple[TokenLogprob, ...], ...] = ()  # one tuple an answer, empty where not wanted

    @property
    def text(self) -> str:
        """The first answer."""
        return self.texts[0]


def gathered(deltas: Sequence[Delta], finished: Finished) -> Answer:
    """The answer that a stream of events told."""
    texts = [""] * len(finished.reasons)
    tokens: list[tuple[TokenLogprob, ...]] = [()] * len(texts)
    for delta in deltas:
        texts[delta.index] += delta.text
        tokens[delta.index] += delta.tokens
    return Answer(tuple(texts), finished, tuple(tokens))


Outcome = Answer | Compressed | Failed  # of a request as a whole: Compressed for one without decoding


@dataclass(frozen=True)
class ModelCard:
    """One model id that requests may name."""

    id: str
    policy: str | None  # kind of the policy; None: the model alone
    trained_steps: int
    methods: tuple[str, ...]
    num_frames: int
    positions: Positions
