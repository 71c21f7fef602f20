"""A decoder's fault, for processes that import nothing else."""

import os


def crashing(path: str, frames: int, max_pixels: int) -> str:
    """Ends its process on one video."""
    if path.endswith("3"):
        os._exit(11)
    return f"read {path}"
