"""Random generators that depend on what is drawn, never on who draws it or when."""

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from any parts, e.g. ``(run seed, "rollout", step, item id)``.

    Stable across processes and platforms (``hash`` is not), so that results do not depend on the
    number of rollout actors, their order or their failures.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*parts: int | str) -> torch.Generator:
    """A generator on the CPU seeded by :func:`derive_seed` of ``parts``."""
    return torch.Generator().manual_seed(derive_seed(*parts))
