"""What the driver asks of a rollout actor and what it gets back."""

from dataclasses import dataclass, field
from typing import TypeAlias

import ray
from torch import Tensor

from cacovid.records import PolicyInput, RolloutRecord, VideoQuestion

Weights: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class RolloutTask:
    """A few items of one training step, rolled out by one actor with one set of weights."""

    step: int
    index: int  # place within the step, so that results are put back in order
    items: tuple[VideoQuestion, ...]
    policy_version: int
    weights: ray.ObjectRef | Weights  # one reference per version, shared by every task
    tokens_per_frame: int | None

    @property
    def key(self) -> tuple[int, int]:
        """Unique within a run."""
        return self.step, self.index


@dataclass(frozen=True)
class EncodeTask:
    """Items whose policy input alone is wanted, to refill the replay buffer after a restore."""

    index: int
    items: tuple[VideoQuestion, ...]

    @property
    def key(self) -> tuple[int, int]:
        """Unique among encode tasks; no training step is negative."""
        return -1, self.index


@dataclass(frozen=True)
class SetAside:
    """An item that could not be used, and why."""

    item: VideoQuestion
    reason: str


@dataclass(frozen=True)
class TaskResult:
    """One task's outcome. ``error`` says that the task itself failed and may be tried elsewhere."""

    key: tuple[int, int]
    records: tuple[RolloutRecord, ...] = ()
    inputs: dict[str, PolicyInput] = field(default_factory=dict)  # by item id, of an EncodeTask
    set_aside: tuple[SetAside, ...] = ()
    error: str | None = None
    worker_index: int = 0
    seconds: float = 0.0  # the actor's time on the task
    encode_seconds: float = 0.0  # thereof decoding and encoding
