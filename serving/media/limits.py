"""What one decoding process may use, and how it is shut in."""

import ctypes
import resource
import signal
from pathlib import Path

from serving.config import MediaConfig

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_DUMPABLE = 1, 38, 4
_OPEN_FILES = 64


def enter(config: MediaConfig) -> None:
    """Shut this process in: dies with its parent, gains no rights, leaves no core file, is bounded by the kernel."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_NO_NEW_PRIVS, 1), (_PR_SET_DUMPABLE, 0)):
        if libc.prctl(option, value, 0, 0, 0):
            raise OSError(ctypes.get_errno(), f"prctl {option}")
    bounds = (
        (resource.RLIMIT_AS, _address_space() + config.job_memory_bytes),
        (resource.RLIMIT_CPU, config.job_cpu_s),
        (resource.RLIMIT_FSIZE, config.max_bytes + (1 << 20)),  # above our own bound, whose refusal says more
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    )
    for which, value in bounds:
        _, hard = resource.getrlimit(which)
        lowered = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (lowered, lowered))


def _address_space() -> int:
    """Bytes mapped by this process: libraries and what its template set up."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()
