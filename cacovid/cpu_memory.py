"""The C library's allocator, told to keep what tensors free.

glibc gives large free blocks back to the kernel at once and gets them anew, page by page, for the next tensor of the
same size. Where a small model makes thousands of such tensors a second, that is a third of all time and more
(``python -m benchmarks.kept_memory``).
"""

import ctypes
import sys
from typing import Final

KEPT_BYTES: Final = 1 << 30  # larger blocks still go back, and free memory beyond this at the heap's end
_OLD_KEPT_BYTES: Final = 32 << 20  # the most that older releases of glibc take
_TRIM_THRESHOLD: Final = -1  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
_MMAP_THRESHOLD: Final = -3


def keep_freed_memory() -> bool:
    """From now on free memory of up to :data:`KEPT_BYTES` stays with this process; False where there is no glibc.

    For processes that do nothing but roll out, learn or measure on CPUs: they hold the memory of their largest step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    # The size of blocks first: either call ends glibc's adapting of it, and a refused one would leave it at 128 KiB.
    return any(mallopt(_MMAP_THRESHOLD, size) for size in (KEPT_BYTES, _OLD_KEPT_BYTES)) and bool(
        mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
    )
