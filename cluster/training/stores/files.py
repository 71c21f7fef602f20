"""Files of a run's store, by pyarrow or fsspec; a store that does not answer is waited for."""

import errno
import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self, TypeVar

import fsspec
import pyarrow as pa
from pyarrow import fs

from cacovid.errors import UserError
from cluster.training.stores.address import StoreAddress

logger = logging.getLogger(__name__)
Answer = TypeVar("Answer")

OBJECT_STORES = frozenset({"s3", "gcs", "abfs"})  # they have no folders, and rename by copying
PART = ".part"  # ends the name of a file that is being written
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 20.0
SAYS_NO = re.compile(
    "ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|NO_SUCH_BUCKET|PERMISSION_DENIED|UNAUTHENTICATED"
    r"|AuthenticationFailed|AuthorizationFailure|HTTP status 40[0134]\b"
)
DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR})
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


class StoreSilent(UserError):
    """The store has not answered for ``run.store_timeout_s``."""


class StoreFiles:
    """The files below one folder of a store, by names relative to it.

    Each call waits for a store that fails, with growing pauses, until it has failed for ``timeout_s``. Before the
    first file is written, a store that answers no (no such bucket, no permission) is not waited for.

    Raises:
        StoreSilent: From every call, after ``timeout_s``.
        UserError: From every call before the first file is written: the store says no.
    """

    def __init__(self, filesystem: fs.FileSystem, root: str, address: StoreAddress, timeout_s: float) -> None:
        self.filesystem = filesystem
        self.root = root
        self.address = address
        self.timeout_s = timeout_s
        self._written = False
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """Let no call wait any longer: the process is to end."""
        self._given_up.set()

    @classmethod
    def open(cls, address: StoreAddress, timeout_s: float) -> Self:
        """Connect to ``address``.

        Raises:
            UserError: There is no such kind of store, or it cannot be reached by what is installed.
        """
        try:
            filesystem, root = _filesystem(address)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError, ImportError, ValueError) as error:
            raise UserError(f"cannot open the store {address.shown}: {address.hide(str(error))}") from None
        files = cls(filesystem, root.rstrip("/"), address, timeout_s)
        files._see_that_the_bucket_is_there()
        return files

    @property
    def is_object_store(self) -> bool:
        """Whether it has neither folders nor renaming."""
        return self.filesystem.type_name in OBJECT_STORES

    def _see_that_the_bucket_is_there(self) -> None:
        bucket = self.root.partition("/")[0]
        if not self.list() and self.is_object_store:
            found = self._patiently(lambda: self.filesystem.get_file_info(bucket))
            if found.type == fs.FileType.NotFound:
                raise UserError(f"there is no bucket {bucket!r} for {self.address.shown}: make it or mend the name")

    def list(self, folder: str = "") -> dict[str, int]:
        """Sizes of all files below ``folder``, by name."""
        selector = fs.FileSelector(self._path(folder), recursive=True, allow_not_found=True)
        found = self._patiently(lambda: self.filesystem.get_file_info(selector))
        return {info.path[len(self.root) + 1 :]: info.size for info in found if info.type == fs.FileType.File}

    def read(self, name: str) -> bytes | None:
        """A small file; None where there is none."""

        def read() -> bytes | None:
            try:
                with self.filesystem.open_input_stream(self._path(name)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

        return self._patiently(read)

    def write(self, name: str, content: bytes) -> None:
        """A small file; its readers see the old one or the whole new one."""

        def write() -> None:
            self._make_parent(name)
            path = self._path(name) if self.is_object_store else self._path(f"{name}{PART}")
            with self.filesystem.open_output_stream(path) as stream:
                stream.write(content)
            if not self.is_object_store:
                self.filesystem.move(path, self._path(name))

        self._patiently(write)
        self._written = True

    def upload(self, source: Path, name: str) -> None:
        """Copy a local file into the store."""

        def copy() -> None:
            self._make_parent(name)
            fs.copy_files(
                str(source), self._path(name), source_filesystem=_LOCAL, destination_filesystem=self.filesystem
            )

        self._patiently(copy)

    def download(self, name: str, target: Path) -> bool:
        """Copy a file of the store to ``target``; False where there is none."""

        def copy() -> bool:
            if self.filesystem.get_file_info(self._path(name)).type != fs.FileType.File:
                return False
            try:
                fs.copy_files(
                    self._path(name), str(target), source_filesystem=self.filesystem, destination_filesystem=_LOCAL
                )
            except FileNotFoundError:  # deleted just now
                return False
            return True

        target.parent.mkdir(parents=True, exist_ok=True)
        return self._patiently(copy)

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""

        def delete() -> None:
            if self.filesystem.get_file_info(self._path(name)).type == fs.FileType.File:
                self.filesystem.delete_file(self._path(name))

        self._patiently(delete)

    def delete_folder(self, name: str) -> None:
        """Remove a folder with all that is in it, if it is there."""

        def delete() -> None:
            if self.filesystem.get_file_info(self._path(name)).type == fs.FileType.Directory:
                self.filesystem.delete_dir(self._path(name))

        self._patiently(delete)

    def exists_beside(self, name: str) -> bool:
        """Whether there is anything called ``name`` beside this folder."""
        found = self._patiently(lambda: self.filesystem.get_file_info(self._beside(name)))
        return bool(found.type != fs.FileType.NotFound)

    def copy_beside(self, source: str, name: str) -> None:
        """Let the store copy the file ``source`` into the folder ``name`` beside this one (object stores)."""
        target = f"{self._beside(name)}/{source}"
        self._patiently(lambda: self.filesystem.copy_file(self._path(source), target))

    def rename(self, name: str) -> None:
        """Move the whole folder to ``name`` beside it (not object stores)."""
        self._patiently(lambda: self.filesystem.move(self.root, self._beside(name)))

    def _path(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root

    def _beside(self, name: str) -> str:
        return f"{self.root.rpartition('/')[0]}/{name}"

    def _make_parent(self, name: str) -> None:
        if not self.is_object_store:
            self.filesystem.create_dir(self._path(name).rpartition("/")[0], recursive=True)

    def _patiently(self, call: Callable[[], Answer]) -> Answer:
        end, pause = time.monotonic() + self.timeout_s, FIRST_PAUSE_S
        while True:
            try:
                return call()
            except FileNotFoundError:  # an answer
                raise
            except OSError as error:
                self._consider(error, time.monotonic() + pause > end)
            if self._given_up.wait(pause):
                raise StoreSilent(f"store {self.address.shown} is no longer waited for")
            pause = min(2 * pause, LONGEST_PAUSE_S)

    def _consider(self, error: OSError, over: bool) -> None:
        """Raise where there is nothing to wait for, else say that it goes on."""
        shown, reason = self.address.shown, self.address.hide(str(error))
        if error.errno in FULL:
            raise UserError(f"no room for the files of {shown} ({reason}): make some, then run the same command again")
        if not self._written and (error.errno in DENIED or SAYS_NO.search(str(error))):
            raise UserError(f"the store {shown} says no ({reason}): see that it is there and your keys may write it")
        if over:
            raise StoreSilent(f"store {shown} has not answered for {self.timeout_s:.0f} s ({reason})") from error
        logger.warning("store %s does not answer (%s): trying again", shown, reason)


_LOCAL = fs.LocalFileSystem()


def _filesystem(address: StoreAddress) -> tuple[fs.FileSystem, str]:
    try:
        found: tuple[fs.FileSystem, str] = fs.FileSystem.from_uri(address.uri)
    except pa.ArrowInvalid as error:
        if "Unrecognized filesystem type" not in str(error):
            raise
        filesystem, path = fsspec.core.url_to_fs(address.uri)
        return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path
    return found


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
