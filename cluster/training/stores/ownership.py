"""Who may write a run in a store: the newest attempt, and nobody else.

    STORE/attempts/NUMBER-ID.json   one small file for each process that has begun to write the run, never deleted

Each attempt takes a number above all that are there, and looks for a newer one before it makes anything count or
deletes anything (:meth:`Ownership.check`). Two that take the same number are told apart by their random ids, in the
same way by everybody. So nobody has to replace a file under a condition, which S3 offers but pyarrow does not; files
that are written must be in the next listing, as in S3, GCS, Azure, HDFS and file systems.

What is left open is the moment between a check and the write behind it. An attempt that is replaced just then may still
write one checkpoint's marker: it does not count, because a checkpoint counts only if the newest attempt has written it
or has found it when it began (``found`` in its file). It may also still overwrite files that lie beside the checkpoints
for people to read (``policy/``, ``metrics.jsonl``); nothing is resumed from them, and the newest attempt writes them
again with its next checkpoint.
"""

import json
import os
import re
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from cacovid.errors import UserError
from cluster.training.stores.files import StoreFiles

FOLDER = "attempts"
NAME = re.compile(rf"{FOLDER}/((\d+)-([0-9a-f]+))\.json")


@dataclass(frozen=True, order=True)
class Attempt:
    """A process that writes the run; a later one is greater."""

    number: int
    id: str

    @classmethod
    def of_file(cls, name: str) -> Self | None:
        """The attempt of a file in the store; None for another file."""
        match = NAME.fullmatch(name)
        return cls(int(match[2]), match[3]) if match else None

    @property
    def name(self) -> str:
        """As files and folders of it are called."""
        return f"{self.number:04d}-{self.id}"

    @property
    def file(self) -> str:
        """Where it is written down in the store."""
        return f"{FOLDER}/{self.name}.json"


class LostRun(UserError):
    """A newer attempt writes the run."""


class Ownership:
    """The attempts of one run, and this process's own once it has begun."""

    def __init__(self, files: StoreFiles) -> None:
        self._files = files
        self._note: dict[str, object] = {"host": socket.gethostname(), "pid": os.getpid()}
        self.own: Attempt | None = None

    def attempts(self) -> list[Attempt]:
        """All of them, oldest first."""
        found = (Attempt.of_file(name) for name in self._files.list(FOLDER))
        return sorted(attempt for attempt in found if attempt is not None)

    def claim(self) -> None:
        """Become the newest attempt.

        Raises:
            LostRun: Another one, begun at the same time, is.
        """
        number = max((attempt.number for attempt in self.attempts()), default=0) + 1
        self.own = Attempt(number, uuid.uuid4().hex[:8])
        self._note["time"] = time.strftime("%Y-%m-%d %H:%M:%S %z")
        self.write_again()
        self.check()

    def begin(self, found: Sequence[str]) -> None:
        """From now on no checkpoints count but this attempt's and ``found``."""
        self.check()
        self._note["found"] = list(found)
        self.write_again()

    def check(self) -> None:
        """See that this is still the newest attempt.

        Raises:
            LostRun: It is not.
        """
        assert self.own is not None, "nothing is claimed"
        attempts = self.attempts()
        if self.own not in attempts:
            raise LostRun(f"{self._files.address.shown} was set aside or removed while this attempt wrote it: it ends")
        if attempts[-1] != self.own:
            raise LostRun(
                f"{self._files.address.shown} is written by a newer attempt, {self._describe(attempts[-1])}: this one "
                "ends, and nothing that it saved since counts"
            )

    def accepted(self) -> tuple[Attempt | None, frozenset[str]]:
        """The newest attempt that has begun, all of whose checkpoints count, and the earlier ones that it found."""
        for attempt in reversed(self.attempts()):
            found = self._read(attempt).get("found")
            if isinstance(found, list):
                return attempt, frozenset(str(name) for name in found)
        return None, frozenset()

    def write_again(self) -> None:
        """Write this attempt down, where its file may have been moved away as well."""
        assert self.own is not None
        self._files.write(self.own.file, (json.dumps(self._note, indent=2) + "\n").encode())

    def _read(self, attempt: Attempt) -> dict[str, object]:
        """What an attempt says of itself; nothing where it was killed as it wrote (not in object stores)."""
        try:
            note = json.loads(self._files.read(attempt.file) or b"{}")
        except ValueError:
            return {}
        return note if isinstance(note, dict) else {}

    def _describe(self, attempt: Attempt) -> str:
        note = self._read(attempt)
        return (
            f"number {attempt.number} (host {note.get('host', '?')}, pid {note.get('pid', '?')}, "
            f"since {note.get('time', '?')})"
        )
