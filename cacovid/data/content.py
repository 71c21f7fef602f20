"""What is in a video, by its bytes: the same wherever it lies and whatever it is called."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path
from typing import TypeAlias

from cacovid.data.frame_folder import frame_files
from cacovid.errors import BadItem

_State: TypeAlias = tuple[str, int, int]  # path, size and modification time of a file


def content_key(path: str | os.PathLike[str]) -> str:
    """Hash of the bytes of a file, or of a folder's frames in their order (hex).

    Raises:
        BadItem: no such file.
    """
    folder = Path(path).is_dir()
    try:
        states = tuple(map(_state, frame_files(path))) if folder else (_state(Path(path)),)
        return _hash(states) if folder else _hash_file(states[0])
    except OSError as error:
        raise BadItem(f"{path}: cannot be read ({error.strerror}); check the path") from None


def _state(path: Path) -> _State:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


@lru_cache(maxsize=4096)
def _hash_file(state: _State) -> str:
    """Hash once per state of the file."""
    with open(state[0], "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=20)).hexdigest()


@lru_cache(maxsize=256)
def _hash(states: tuple[_State, ...]) -> str:
    digest = hashlib.blake2b(f"{len(states)} frames ".encode(), digest_size=20)
    for path, _, _ in states:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
