"""Processes that a test has started, found by what stands in their command lines."""

import psutil

TEMPLATE = "serving.media.template"


def processes(name: str) -> list[psutil.Process]:
    """Those below this one."""
    return [process for process in psutil.Process().children(recursive=True) if name in _command_line(process)]


def decoders() -> list[psutil.Process]:
    """Decoding processes at work: children of templates but for the youngest of each, which waits for a video."""
    return [process for template in templates() for process in sorted(template.children(), key=_age)[:-1]]


def templates() -> list[psutil.Process]:
    """What decoding processes are forked from, by whose command line they go."""
    found = processes(TEMPLATE)
    pids = {process.pid for process in found}
    return [process for process in found if _parent(process) not in pids]


def is_running(pid: int) -> bool:
    """Whether a process of this number lives (a zombie does not)."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _command_line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""  # it has just ended


def _age(process: psutil.Process) -> tuple[float, int]:
    return process.create_time(), process.pid


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None
