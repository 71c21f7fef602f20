"""What the driver asks of a rollout actor and what it gets back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar
from uuid import uuid4

import ray
from torch import Tensor

from cacovid.evaluation.measuring import Asked, Outcome
from cacovid.evaluation.result import EvaluationResult
from cacovid.records import Rollout, RolloutInput, VideoQuestion
from cacovid.rollout import WHOLE, Part

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
    nbytes: int = 0  # of all tensors

    @classmethod
    def of(cls, version: int, weights: Weights, *, remote: bool) -> "PublishedWeights":
        """Publish ``weights``; put into the object store by the caller, so that no actor's death loses them."""
        nbytes = sum(value.nbytes for value in weights.values())
        return cls(version, ray.put(weights) if remote else weights, nbytes=nbytes)

    def value(self) -> Weights:
        """The weights themselves."""
        weights: Weights = ray.get(self.held) if isinstance(self.held, ray.ObjectRef) else self.held
        return weights


@dataclass(frozen=True)
class RolloutTask:
    """A few items of one training step, rolled out by one actor with one set of weights.

    Of several parts the first one alone brings the items' inputs.
    """

    step: int
    items: tuple[VideoQuestion, ...]
    weights: PublishedWeights
    tokens_per_frame: int | None
    part: Part = WHOLE  # of every item's combinations
    explore: float = 0.0  # share of the drawn combinations that follow no policy


@dataclass(frozen=True)
class EncodeTask:
    """Items whose inputs alone are wanted: those of replayed rollouts after a restore, or lost with their node."""

    items: tuple[VideoQuestion, ...]
    weights: PublishedWeights | None = None  # that drew the rollouts, where the objective needs their logits


@dataclass(frozen=True)
class EvaluateTask:
    """Items to answer from what the policy retains by its own selection rule, without exploring."""

    items: tuple[VideoQuestion, ...]
    weights: PublishedWeights
    retentions: tuple[float, ...]


@dataclass(frozen=True)
class MeasureTask:
    """Items to measure by every method of the actor's set-up."""

    items: tuple[VideoQuestion, ...]
    asked: Mapping[str, Asked]  # by item id


PolicyTask: TypeAlias = RolloutTask | EncodeTask | EvaluateTask  # of a training run
Task: TypeAlias = PolicyTask | MeasureTask


Each = TypeVar("Each")


def parts(items: Sequence[Each], size: int) -> list[tuple[Each, ...]]:
    """``items`` in parts of ``size``, in order; the last one may be shorter."""
    return [tuple(items[at : at + size]) for at in range(0, len(items), size)]


@dataclass(frozen=True)
class SetAside:
    """An item that could not be used, and why."""

    item: VideoQuestion
    reason: str


@dataclass(frozen=True)
class TaskResult:
    """One task's outcome. ``error`` says that the task itself failed and may be tried elsewhere.

    A remote actor returns the inputs beside the result, one object each: the driver passes their references
    on and never fetches them.
    """

    rollouts: tuple[Rollout, ...] = ()  # of a RolloutTask
    encoded: tuple[str, ...] = ()  # item ids of an EncodeTask
    inputs: tuple[RolloutInput | ray.ObjectRef, ...] = ()  # one for each of the rollouts or encoded items
    input_bytes: tuple[int, ...] = ()  # of each input
    evaluations: tuple[EvaluationResult, ...] = ()  # one an item, of an EvaluateTask
    measured: tuple[Outcome, ...] = ()  # of a MeasureTask
    set_aside: tuple[SetAside, ...] = ()
    error: str | None = None
    seconds: float = 0.0  # the actor's time on the task
    encode_seconds: float = 0.0  # thereof decoding and encoding
    gpu_bytes: int = 0  # of GPU memory that the actor's process held behind it

    @classmethod
    def joined(cls, parts: "Sequence[TaskResult]") -> "TaskResult":
        """The outcome of a task whose items were worked on apart, in their order."""
        return cls(
            rollouts=tuple(rollout for part in parts for rollout in part.rollouts),
            encoded=tuple(id for part in parts for id in part.encoded),
            inputs=tuple(value for part in parts for value in part.inputs),
            input_bytes=tuple(size for part in parts for size in part.input_bytes),
            evaluations=tuple(each for part in parts for each in part.evaluations),
            measured=tuple(each for part in parts for each in part.measured),
            set_aside=tuple(each for part in parts for each in part.set_aside),
            seconds=sum(part.seconds for part in parts),
            encode_seconds=sum(part.encode_seconds for part in parts),
        )

    @classmethod
    def of_parts(cls, parts: "Sequence[TaskResult]") -> "TaskResult":
        """The outcome of rollout tasks that scored a part each of the same items' combinations.

        An item that one part could not use is set aside as a whole.
        """
        aside = {each.item.id: each for part in parts for each in part.set_aside}
        scored = [{rollout.item_id: rollout for rollout in part.rollouts} for part in parts]
        inputs = zip(parts[0].rollouts, parts[0].inputs, parts[0].input_bytes, strict=True)
        whole = [(rollout.item_id, seen, size) for rollout, seen, size in inputs if rollout.item_id not in aside]
        return cls(
            rollouts=tuple(Rollout.joined([each[id] for each in scored]) for id, _, _ in whole),
            inputs=tuple(seen for _, seen, _ in whole),
            input_bytes=tuple(size for _, _, size in whole),
            set_aside=tuple(aside.values()),
            seconds=sum(part.seconds for part in parts),
            encode_seconds=sum(part.encode_seconds for part in parts),
        )
