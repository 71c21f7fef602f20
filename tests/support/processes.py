"""Processes that a test has started, found by what stands in their command lines."""

import psutil

TEMPLATE = "serving.media.template"


def processes(name: str) -> list[psutil.Process]:
    """Those below this one."""
    return [process for process in psutil.Process().children(recursive=True) if name in _command_line(process)]


def decoders() -> list[psutil.Process]:
    """Decoding processes: children of templates, by whose command line they go."""
    found = processes(TEMPLATE)
    templates = {process.pid for process in found}
    return [process for process in found if _parent(process) in templates]


def templates() -> list[psutil.Process]:
    """What decoding processes are forked from."""
    forked = {process.pid for process in decoders()}
    return [process for process in processes(TEMPLATE) if process.pid not in forked]


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


def _parent(process: psutil.Process) -> int | None:
    try:
        return process.ppid()
    except psutil.Error:
        return None
