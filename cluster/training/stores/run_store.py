"""A run in a store: what another machine needs to go on with it, and which checkpoint of it counts.

    STORE/config.toml, metrics.jsonl, skipped.jsonl, curve.png, policy/, best_policy/, initial_policy/, tensorboard/,
          checkpoints/best.json                 newest copies, as in a run's folder, for people and for other commands
    STORE/refit/                                the policy of `cacovid refit`
    STORE/attempts/NUMBER-ID.json               who writes it, see :mod:`cluster.training.stores.ownership`
    STORE/checkpoints/step-N/NUMBER-ID/         the checkpoint after N steps by that attempt:
          checkpoint/, run/                     its files; the run's rows so far
          COMPLETE                              written last: size and SHA-256 of each file

A checkpoint without COMPLETE, or whose files are not those, does not count. No two attempts ever write the same
checkpoint's files.
"""

import json
import logging
import re
import shutil
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cacovid.config import TrainConfig
from cacovid.config_files import to_toml, with_overrides
from cacovid.errors import UserError
from cluster.training.best_checkpoint import saved_step
from cluster.training.run_directory import RunDirectory, free_name
from cluster.training.stores.address import StoreAddress
from cluster.training.stores.files import PART, StoreFiles, sha256
from cluster.training.stores.ownership import Attempt, Ownership
from cluster.training.stores.parcel import Parcel, unpack

logger = logging.getLogger(__name__)

CONFIG = "config.toml"
FOLDER = "checkpoints"
MARKER = "COMPLETE"
PLACE = re.compile(rf"{FOLDER}/(step-(\d+)/(\d+)-([0-9a-f]+))/(.+)")


@dataclass(frozen=True, order=True)
class Stored:
    """A checkpoint in the store; a later one is greater."""

    step: int
    attempt: Attempt
    files: dict[str, int] = field(default_factory=dict, compare=False)  # size by name

    @property
    def name(self) -> str:
        """``step-N/NUMBER-ID``."""
        return f"step-{self.step:06d}/{self.attempt.name}"

    @property
    def folder(self) -> str:
        """Where it lies in the store."""
        return f"{FOLDER}/{self.name}"

    @property
    def is_marked(self) -> bool:
        """Whether its upload came to its end."""
        return MARKER in self.files


class NotWhole(Exception):
    """A checkpoint in the store is not what was saved; says why."""


class RunStore:
    """One run's folder in a store."""

    def __init__(self, files: StoreFiles) -> None:
        self.files = files
        self.owner = Ownership(files)
        self._sent: dict[str, str] = {}  # digest of each copy that lies beside the checkpoints

    @classmethod
    def open(cls, address: StoreAddress, timeout_s: float) -> Self:
        """Connect to the store; nothing is written yet.

        Raises:
            UserError: It cannot be reached, says no, or its folder holds something else than a run.
        """
        store = cls(StoreFiles.open(address, timeout_s))
        if store.files.read(CONFIG) is None:
            begun = [name for name in store.files.list() if not name.endswith(PART)]  # and killed before its config
            foreign = [name for name in begun if not Attempt.of_file(name)]
            if foreign:
                raise UserError(f"{address.shown} is in use ({foreign[0]} lies there, no run): choose another folder")
        return store

    @property
    def shown(self) -> str:
        """Its address without keys."""
        return self.files.address.shown

    @property
    def attempt(self) -> int:
        """Number of this process's attempt, once it has claimed the run."""
        assert self.owner.own is not None, "nothing is claimed"
        return self.owner.own.number

    def saved_config(self) -> TrainConfig | None:
        """The configuration of the run that is there; None where there is none."""
        content = self.files.read(CONFIG)
        return None if content is None else with_overrides(tomllib.loads(content.decode()), {})

    def save_config(self, config: TrainConfig) -> None:
        """Say what the run is."""
        self.files.write(CONFIG, to_toml(config).encode())

    def counting(self) -> list[Stored]:
        """Checkpoints that count, oldest first, going by their markers alone."""
        return [each for each in self._accepted() if each.is_marked]

    def begin(self, passed_over: Sequence[Stored] = ()) -> None:
        """Take over: of the checkpoints that are there, none but those that count now ever will."""
        self.owner.begin([each.name for each in self.counting() if each not in passed_over])

    def fetch(self, run: RunDirectory, newer_than: int = 0) -> list[Stored]:
        """Bring the newest whole checkpoint, if it is newer, and the best one into ``run``.

        Returns:
            Newer ones that are not whole.
        """
        passed_over: list[Stored] = []
        for stored in reversed(self._accepted()):
            if stored.step <= newer_than:
                break
            try:
                self._download(stored, run, with_rows=True)
            except NotWhole as reason:
                logger.warning("passing over %s/%s, which is not whole: %s", self.shown, stored.folder, reason)
                passed_over.append(stored)
            else:
                self._fetch_best(run)
                break
        return passed_over

    def _fetch_best(self, run: RunDirectory) -> None:
        step = saved_step(run.best)
        for stored in reversed(self.counting()):
            if stored.step == step and not run.checkpoint(step).exists():
                try:
                    self._download(stored, run, with_rows=False)
                except NotWhole as reason:
                    logger.warning("the best checkpoint is lost, %s/%s: %s", self.shown, stored.folder, reason)

    def publish(self, parcel: Parcel, keep: int) -> None:
        """Upload a checkpoint, make it count, and remove all but the newest ``keep`` and the best.

        Raises:
            UserError: The store stays silent, or a newer attempt writes the run.
        """
        assert self.owner.own is not None, "nothing is claimed"
        stored = Stored(parcel.step, self.owner.own)
        self.owner.check()
        self.files.delete(f"{stored.folder}/{MARKER}")
        manifest = {}
        for name, path in parcel.checkpoint_files().items():
            manifest[name] = {"size": path.stat().st_size, "sha256": sha256(path)}
            self.files.upload(path, f"{stored.folder}/{name}")
        self.owner.check()
        self._send_copies(parcel)
        self.owner.check()
        content = {"step": parcel.step, "attempt": stored.attempt.name, "files": manifest}
        self.files.write(f"{stored.folder}/{MARKER}", json.dumps(content, indent=1).encode())
        self._remove_old(keep, saved_step(parcel.best))

    def publish_folder(self, folder: Path) -> None:
        """Upload the files of ``folder``, a policy, under its name: no part of any checkpoint."""
        for path in sorted(folder.iterdir()):
            self.files.upload(path, f"{folder.name}/{path.name}")

    def set_aside(self) -> str:
        """Move the run to a name beside it that is free; its store as it is shown.

        An object store copies every file, then deletes it; a copy counts as a run with its config.toml, the last one.
        """
        name = free_name(self.files.root.rpartition("/")[2], self.files.exists_beside)
        if self.files.is_object_store:
            files = self.files.list()
            for each in sorted(files, key=lambda file: file == CONFIG):
                self.files.copy_beside(each, name)
            for each in files:
                if Attempt.of_file(each) is None:  # they tell an earlier attempt that it has lost
                    self.files.delete(each)
        else:
            self.files.rename(name)
            self.owner.write_again()
        return self.files.address.beside(name)

    def _stored(self) -> list[Stored]:
        """Every checkpoint's folder, whole or not, oldest first."""
        found: dict[str, Stored] = {}
        for name, size in self.files.list(FOLDER).items():
            if match := PLACE.fullmatch(name):
                stored = Stored(int(match[2]), Attempt(int(match[3]), match[4]))
                found.setdefault(match[1], stored).files[match[5]] = size
        return sorted(found.values())

    def _accepted(self) -> list[Stored]:
        """Those that the newest attempt wrote, or found when it began."""
        attempt, found = self.owner.accepted()
        return [each for each in self._stored() if each.attempt == attempt or each.name in found]

    def _download(self, stored: Stored, run: RunDirectory, *, with_rows: bool) -> None:
        """Raises NotWhole before anything in ``run`` has changed."""
        if not stored.is_marked:
            raise NotWhole(f"its upload did not come to its end (no {MARKER})")
        part = run.part(stored.step)
        try:
            for name, expected in self._manifest(stored).items():
                self._download_file(stored, name, expected, part)
            unpack(part, run, stored.step, with_rows=with_rows)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _download_file(self, stored: Stored, name: str, expected: dict[str, object], part: Path) -> None:
        if stored.files.get(name) != expected["size"]:
            raise NotWhole(f"{name} has {stored.files.get(name, 'no')} bytes instead of {expected['size']}")
        if not self.files.download(f"{stored.folder}/{name}", part / name) or sha256(part / name) != expected["sha256"]:
            raise NotWhole(f"{name} is not the file that was saved")

    def _manifest(self, stored: Stored) -> dict[str, dict[str, object]]:
        try:
            content = json.loads(self.files.read(f"{stored.folder}/{MARKER}") or b"")
            files = {str(name): dict(known) for name, known in content["files"].items()}
            assert all({"size", "sha256"} <= known.keys() for known in files.values())
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise NotWhole(f"its {MARKER} cannot be read") from error
        return files

    def _send_copies(self, parcel: Parcel) -> None:
        for name, path in parcel.copies().items():
            digest = sha256(path)
            if self._sent.get(name) != digest:
                self.files.upload(path, name)
                self._sent[name] = digest

    def _remove_old(self, keep: int, best_step: int | None) -> None:
        whole, own = self.counting(), self.owner.own
        assert own is not None
        kept = [*whole[-keep:], *[each for each in whole if each.step == best_step]]
        old = [each for each in self._stored() if each not in kept and each.attempt <= own]
        if old:
            self.owner.check()
        for each in old:
            self.files.delete(f"{each.folder}/{MARKER}")  # it stops to count before it is in pieces
            self.files.delete_folder(each.folder)
