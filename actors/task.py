"""What the driver asks of a rollout actor and what it gets back."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias
from uuid import uuid4

import ray
from torch import Tensor

from cacovid.evaluation.result import EvaluationResult
from cacovid.records import PolicyInput, RolloutRecord, VideoQuestion

Weights: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class PublishedWeights:
    """One version of the policy's weights, shared by every task that uses it.

    ``id`` is drawn for each publication: a restored checkpoint may bring other weights under the same
    version, and an actor must tell them apart.
    """

    version: int  # finished training steps
    held: ray.ObjectRef | Weights  # by reference where the actors are remote
    id: str = field(default_factory=lambda: uuid4().hex)

    @classmethod
    def of(cls, version: int, weights: Weights, *, remote: bool) -> "PublishedWeights":
        """Publish ``weights``; put into the object store by the caller, so that no actor's death loses them."""
        return cls(version, ray.put(weights) if remote else weights)

    def value(self) -> Weights:
        """The weights themselves."""
        weights: Weights = ray.get(self.held) if isinstance(self.held, ray.ObjectRef) else self.held
        return weights


@dataclass(frozen=True)
class RolloutTask:
    """A few items of one training step, rolled out by one actor with one set of weights."""

    step: int
    items: tuple[VideoQuestion, ...]
    weights: PublishedWeights
    tokens_per_frame: int | None


@dataclass(frozen=True)
class EncodeTask:
    """Items whose policy input alone is wanted, to refill the replay buffer after a restore."""

    items: tuple[VideoQuestion, ...]


@dataclass(frozen=True)
class EvaluateTask:
    """Items to answer from what the policy retains by its own selection rule, without exploring."""

    items: tuple[VideoQuestion, ...]
    weights: PublishedWeights
    retentions: tuple[float, ...]


Task: TypeAlias = RolloutTask | EncodeTask | EvaluateTask


def parts(items: Sequence[VideoQuestion], size: int) -> list[tuple[VideoQuestion, ...]]:
    """``items`` as tasks take them: ``size`` each, in order, the last part may be shorter."""
    return [tuple(items[at : at + size]) for at in range(0, len(items), size)]


@dataclass(frozen=True)
class SetAside:
    """An item that could not be used, and why."""

    item: VideoQuestion
    reason: str


@dataclass(frozen=True)
class TaskResult:
    """One task's outcome. ``error`` says that the task itself failed and may be tried elsewhere."""

    records: tuple[RolloutRecord, ...] = ()  # of a RolloutTask
    inputs: dict[str, PolicyInput] = field(default_factory=dict)  # by item id, of an EncodeTask
    evaluations: tuple[EvaluationResult, ...] = ()  # one an item, of an EvaluateTask
    set_aside: tuple[SetAside, ...] = ()
    error: str | None = None
    seconds: float = 0.0  # the actor's time on the task
    encode_seconds: float = 0.0  # thereof decoding and encoding

    @classmethod
    def joined(cls, parts: "Sequence[TaskResult]") -> "TaskResult":
        """The outcome of a task whose items were worked on apart, in their order."""
        return cls(
            records=tuple(record for part in parts for record in part.records),
            inputs={id: value for part in parts for id, value in part.inputs.items()},
            evaluations=tuple(each for part in parts for each in part.evaluations),
            set_aside=tuple(each for part in parts for each in part.set_aside),
            seconds=sum(part.seconds for part in parts),
            encode_seconds=sum(part.encode_seconds for part in parts),
        )
