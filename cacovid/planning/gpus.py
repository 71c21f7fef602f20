"""GPUs, and how many rollout actors and learners fit them."""

from dataclasses import dataclass

GIB = 1024**3
USABLE = 0.92  # of the stated memory; the rest goes to fragmentation
CONTEXT_BYTES = int(0.8 * GIB)  # CUDA context and libraries of one process


@dataclass(frozen=True)
class Gpu:
    """A GPU by its data sheet."""

    name: str
    memory: int  # bytes
    flops: float  # dense bfloat16 operations a second

    @property
    def usable(self) -> int:
        """Bytes to plan with."""
        return int(self.memory * USABLE)


GPUS = (
    Gpu("L4 24 GB", 24 * GIB, 121e12),
    Gpu("A10 24 GB", 24 * GIB, 125e12),
    Gpu("A100 40 GB", 40 * GIB, 312e12),
    Gpu("L40S 48 GB", 48 * GIB, 362e12),
    Gpu("A100 80 GB", 80 * GIB, 312e12),
    Gpu("H100 80 GB", 80 * GIB, 989e12),
    Gpu("H200 141 GB", 141 * GIB, 989e12),
)


@dataclass(frozen=True)
class Fit:
    """What one kind of GPU holds."""

    gpu: Gpu
    actors: int  # rollout actors on one GPU of their own; set actors.gpus to 1 over this
    learners: int | None  # fewest learners, one GPU each, that hold the policy; None: none do at this ZeRO stage
    shared_actors: int  # actors beside a single learner on one GPU


def fit(gpu: Gpu, actor_bytes: int, learner_bytes: list[int]) -> Fit:
    """How many actors of ``actor_bytes`` and learners fit; ``learner_bytes[n - 1]`` is one of n learners'."""
    enough = [count for count, size in enumerate(learner_bytes, start=1) if size <= gpu.usable]
    beside = gpu.usable - learner_bytes[0]
    return Fit(gpu, gpu.usable // actor_bytes, enough[0] if enough else None, max(0, beside // actor_bytes))
