"""Why a Ray actor died, as far as Ray knows: of its errors one short reason, and a line for people.

Ray sees the end of a connection where a process is gone without a word, so that ``kill -9``, the kernel's
out-of-memory killer and a crash look alike.
"""

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

import ray

Reason: TypeAlias = Literal["exit", "killed", "out_of_memory", "preempted", "node_lost", "overdue", "start", "unknown"]
_NO_WORD = "connection error code"
_EXIT_CODE = re.compile(r"exits? with an exit code (-?\d+)")
_PLACE = {"pid": re.compile(r"^\tpid: (\d+)$", re.MULTILINE), "ip": re.compile(r"^\tip: (\S+)$", re.MULTILINE)}
_NODE_ENDED = re.compile(r"the actor's node was ([^\n]*)")


@dataclass(frozen=True)
class Death:
    """The end of an actor's process."""

    reason: Reason  # for counting
    text: str  # one line


def death_of(error: Exception) -> Death:
    """What ``error``, of a call or a creation of an actor, says about its end."""
    message, cause = str(error), error.__cause__
    if isinstance(cause, ray.exceptions.OutOfMemoryError):  # told in other words
        return death_of(cause)
    if isinstance(cause, ray.exceptions.GetTimeoutError):
        return Death("overdue", _first(message))
    if isinstance(error, ray.exceptions.OutOfMemoryError) or "NODE_OUT_OF_MEMORY" in message:
        return Death("out_of_memory", f"Ray killed it to save its node: {_first(message)}")
    place = ", ".join(f"{name} {found[1]}" for name, each in _PLACE.items() if (found := each.search(message)))
    reason, why = _cause(error, message)
    return Death(reason, f"{why} ({place})" if place else why)


def _cause(error: Exception, message: str) -> tuple[Reason, str]:
    if isinstance(error, ray.exceptions.RayActorError) and error.actor_init_failed:
        return "start", f"its start failed: {message.strip().splitlines()[-1]}"
    if "because its node has died" in message:
        ended = _NODE_ENDED.search(message)
        told = f": {ended[1]}" if ended else ""
        preempted = isinstance(error, ray.exceptions.RayActorError) and error.preempted
        return ("preempted", f"its node was taken away{told}") if preempted else ("node_lost", f"its node died{told}")
    if "`ray.kill`" in message:
        return "killed", "somebody called ray.kill"
    if "SIGTERM" in message:
        return "killed", "it was sent SIGTERM"
    if code := _EXIT_CODE.search(message):
        return "exit", f"exit code {code[1]}"
    if _NO_WORD in message:
        return "killed", "its process is gone without a word: kill -9, the system out of memory, or a crash"
    return "unknown", _first(message)


def _first(message: str) -> str:
    lines = message.strip().splitlines()
    return lines[0] if lines else "Ray does not say why"
