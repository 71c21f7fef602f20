"""GPUs, and how many rollout actors and learners fit them."""

from collections.abc import Sequence
from dataclasses import dataclass

GIB = 1024**3
USABLE = 0.92  # of the memory there is; the rest goes to fragmentation
CONTEXT_BYTES = int(0.8 * GIB)  # CUDA context and libraries of one process


@dataclass(frozen=True)
class Gpu:
    """A GPU with the memory that torch reports on it, which is less than its name says."""

    name: str
    memory: int  # bytes

    @property
    def usable(self) -> int:
        """Bytes to plan with."""
        return int(self.memory * USABLE)


GPUS = (
    Gpu("L4 24 GB", int(22.0 * GIB)),
    Gpu("A10 24 GB", int(22.0 * GIB)),
    Gpu("A100 40 GB", int(39.4 * GIB)),
    Gpu("L40S 48 GB", int(44.4 * GIB)),
    Gpu("A100 80 GB", int(79.1 * GIB)),
    Gpu("H100 80 GB", int(79.1 * GIB)),
    Gpu("H200 141 GB", int(139.7 * GIB)),
)


@dataclass(frozen=True)
class Fit:
    """What one kind of GPU holds."""

    gpu: Gpu
    actors: int  # rollout actors on one GPU of their own; set actors.gpus to 1 over this
    spread_over: int | None  # where that is 0: fewest GPUs of a node over which one actor fits; None: not over 8
    learners: int | None  # fewest learners, one GPU each, that hold the policy; None: none do at this ZeRO stage
    shared_actors: int  # actors beside a single learner on one GPU


def fit(gpu: Gpu, actor_bytes: int, learner_bytes: list[int], spread_bytes: Sequence[int] = ()) -> Fit:
    """How many actors of ``actor_bytes`` and learners fit; ``learner_bytes[n - 1]`` is one of n learners'.

    Args:
        spread_bytes: Of an actor on the fullest of 2, 3, ... GPUs.
    """
    enough = [count for count, size in enumerate(learner_bytes, start=1) if size <= gpu.usable]
    beside = gpu.usable - learner_bytes[0]
    spread = [count for count, size in enumerate(spread_bytes, start=2) if size <= gpu.usable]
    return Fit(
        gpu,
        actors=gpu.usable // actor_bytes,
        spread_over=spread[0] if spread and actor_bytes > gpu.usable else None,
        learners=enough[0] if enough else None,
        shared_actors=max(0, beside // actor_bytes),
    )
