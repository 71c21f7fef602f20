"""The records that cross between data, rollout actors and learner.

Shape legend: G combinations of one inner iteration, k retained tokens, N video tokens, T frames
(temporal steps), Lt text tokens, L prompt columns, D width of the language model.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cacovid.packing import PackedIndices

ProblemType = Literal["multiple choice", "numerical", "OCR", "free-form", "regression"]


@dataclass(frozen=True)
class VideoQuestion:
    """One row of the question table (columns of the same names in Parquet)."""

    id: str
    video: str  # path; relative ones are resolved against the table's folder
    question: str
    options: tuple[str, ...]  # texts without letters; empty unless multiple choice
    answer: str  # the letter for multiple choice, else the text or number
    problem_type: ProblemType
    source: str  # the collection it comes from
    evidence: tuple[int, ...] = ()  # token cells of the asked object, t*H*W + row*W + column
    other_objects: tuple[int, ...] = ()  # token cells of every other object
    start: float | None = None  # seconds after the video's first frame from which on it is asked about; None: the first
    end: float | None = None  # and until when; None: the last
    duration: float | None = None  # seconds of the whole video, as its collection says
    group: str = ""  # its collection's group of lengths, e.g. "short"
    question_type: str = ""  # its collection's kind of question, e.g. "plotQA"

    @property
    def clip(self) -> "Clip":
        """What of the video is watched."""
        return Clip(self.video, self.start, self.end)


class Clip(NamedTuple):
    """A video, or the seconds of it that a question is about."""

    video: str  # path of a file or of a folder of frames
    start: float | None = None  # seconds after the first frame; None: from the first
    end: float | None = None  # None: to the last


class TokenGrid(NamedTuple):
    """How video tokens lie: index ``n = (t * rows + row) * columns + column``."""

    frames: int  # temporal steps T, not decoded frames (Qwen merges two frames into one step)
    rows: int
    columns: int

    @property
    def per_frame(self) -> int:
        """Tokens of one temporal step, H*W."""
        return self.rows * self.columns

    @property
    def tokens(self) -> int:
        """All video tokens N."""
        return self.frames * self.rows * self.columns


@dataclass(frozen=True)
class PolicyInput:
    """What the compression policy reads of one (video, question): no pixels, no model."""

    features: Tensor  # (N, D) projected video tokens
    text: Tensor  # (Lt, D) raw embeddings of every other prompt column, in prompt order
    video_columns: Tensor  # (N,) int64, columns of the video tokens in the prompt
    text_columns: Tensor  # (Lt,) int64, columns of the other tokens; together a permutation of L
    position_ids: Tensor  # (1, L) or, for M-RoPE, (3, L) int64
    grid: TokenGrid

    def cpu(self) -> "PolicyInput":
        """The same input with every tensor on the CPU."""
        return replace(self, **{name: each.cpu() for name, each in vars(self).items() if name != "grid"})

    def nbytes(self) -> int:
        """Bytes held by the tensors, for bounded buffers."""
        return tensor_bytes(self.features, self.text, self.video_columns, self.text_columns, self.position_ids)


class Mode(IntEnum):
    """Which OCSS sampler drew a combination."""

    CONTENT = 0
    TOKEN = 1
    FRAME = 2


@dataclass(frozen=True)
class Combinations:
    """G token combinations of equal size drawn for one item in one inner iteration.

    Pickled, the indices are packed, and they stay so until somebody asks for them: the driver, which passes them on
    for a thousand actors, never does.
    """

    indices: Tensor | PackedIndices  # see `kept`
    modes: Tensor  # (G,) uint8, values of Mode
    frames: Tensor  # (G, T) bool, the drawn frames (all False unless Mode.FRAME)
    rate: float  # sampling rate r; k = round(r * H*W) * T

    @property
    def kept(self) -> Tensor:
        """(G, k) int32, ascending retained token indices."""
        if isinstance(self.indices, PackedIndices):
            object.__setattr__(self, "indices", self.indices.unpacked())
        assert isinstance(self.indices, Tensor)
        return self.indices

    def nbytes(self) -> int:
        """Bytes of the unpacked indices and of the frames, for bounded buffers."""
        return math.prod(self.indices.shape) * torch.int32.itemsize + tensor_bytes(self.frames)

    def rows(self, which: slice) -> "Combinations":
        """Some of the G combinations."""
        return Combinations(self.kept[which], self.modes[which], self.frames[which], self.rate)

    def __getstate__(self) -> dict[str, Any]:
        packed = PackedIndices.of(self.indices) if isinstance(self.indices, Tensor) else self.indices
        return {**vars(self), "indices": packed}


@dataclass(frozen=True)
class ScoredCombinations:
    """Combinations with what the frozen Video-LLM made of them."""

    combinations: Combinations
    reward: Tensor  # (G,) float32 in [0, 1], answer correctness
    likelihood: Tensor  # (G,) float32, probability of the right answer (0 where not computed)

    @classmethod
    def joined(cls, parts: "Sequence[ScoredCombinations]") -> "ScoredCombinations":
        """All combinations of one inner iteration that were scored apart."""
        drawn = [part.combinations for part in parts]
        combinations = Combinations(
            torch.cat([each.kept for each in drawn]),
            torch.cat([each.modes for each in drawn]),
            torch.cat([each.frames for each in drawn]),
            drawn[0].rate,
        )
        return cls(combinations, torch.cat([part.reward for part in parts]), torch.cat([p.likelihood for p in parts]))


@dataclass(frozen=True)
class RolloutInput:
    """What the policy read of one item, and what it made of it: megabytes, which travel by reference."""

    input: PolicyInput
    old_token_logits: Tensor  # (N, 2) float32; (0, 2) where no objective needs them
    old_frame_logits: Tensor  # (T, 2) float32; (0, 2) likewise

    def nbytes(self) -> int:
        """Bytes held by the tensors, for bounded buffers."""
        return self.input.nbytes() + tensor_bytes(self.old_token_logits, self.old_frame_logits)


@dataclass(frozen=True)
class Rollout:
    """What was drawn for one item and what it earned: kilobytes, which travel by value."""

    item_id: str
    step: int  # training step that it belongs to
    policy_version: int  # weights that drew it; step - policy_version is its staleness
    iterations: tuple[ScoredCombinations, ...]

    @classmethod
    def joined(cls, parts: "Sequence[Rollout]") -> "Rollout":
        """One item's rollout whose combinations were scored in parts."""
        if len(parts) == 1:
            return parts[0]  # as packed as it is
        iterations = zip(*(part.iterations for part in parts), strict=True)
        return replace(parts[0], iterations=tuple(map(ScoredCombinations.joined, iterations)))

    def nbytes(self) -> int:
        """Bytes held by the tensors, for bounded buffers."""
        return sum(
            scored.combinations.nbytes() + tensor_bytes(scored.reward, scored.likelihood) for scored in self.iterations
        )


@dataclass(frozen=True)
class RolloutRecord:
    """Everything the learner needs of one item; it crosses from actor to learner in two parts.

    The policy's logits were taken at ``policy_version`` (number of finished training steps) and all
    inner iterations were drawn from them, so the record does not depend on updates made meanwhile.
    """

    item_id: str
    step: int  # training step that the record belongs to
    policy_version: int  # weights that drew it; step - policy_version is its staleness
    input: PolicyInput
    old_token_logits: Tensor  # (N, 2) float32, columns drop, keep
    old_frame_logits: Tensor  # (T, 2) float32
    iterations: tuple[ScoredCombinations, ...]

    @classmethod
    def of(cls, rollout: Rollout, seen: RolloutInput) -> "RolloutRecord":
        """Both parts together."""
        return cls(**{**vars(rollout), **vars(seen)})

    def parts(self) -> tuple[Rollout, RolloutInput]:
        """The part that travels by value, and the one that travels by reference."""
        return (
            Rollout(self.item_id, self.step, self.policy_version, self.iterations),
            RolloutInput(self.input, self.old_token_logits, self.old_frame_logits),
        )

    def nbytes(self) -> int:
        """Bytes held by the tensors, for bounded buffers."""
        return sum(part.nbytes() for part in self.parts())


@dataclass(eq=False)
class HeldRecord:
    """A record whose parts are held by value or by whatever reference their owner uses."""

    item_id: str
    policy_version: int
    rollout: object  # a Rollout or a reference to one
    seen: object | None  # a RolloutInput or a reference to one; None: it must be encoded again
    nbytes: int  # of the whole record

    @classmethod
    def of(cls, record: RolloutRecord, hold: Callable[[object], object] = lambda part: part) -> "HeldRecord":
        """``record`` as ``hold`` keeps its parts."""
        rollout, seen = map(hold, record.parts())
        return cls(record.item_id, record.policy_version, rollout, seen, record.nbytes())


def tensor_bytes(*tensors: Tensor) -> int:
    """Bytes that ``tensors`` hold."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
