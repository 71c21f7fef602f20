"""A bounded cache of video features on disk, shared by every process of a machine.

One Arrow IPC file per (video content, segment, model, frame count). Reading maps the file privately, so that
tensors cost no copy and writing to one never reaches the file. Writing goes through a temporary file
and an atomic rename: a reader sees a whole entry or none. The oldest entries (by last use) go first.
"""

import fcntl
import hashlib
import json
import mmap
import os
import time
import uuid
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from cacovid.models.encoded import VideoFeatures

FORMAT = "1"
_SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int64()), nullable=False),
        pa.field("crc32", pa.int64(), nullable=False),
        pa.field("data", pa.large_binary(), nullable=False),
    ]
)
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int64)}
_FILL = 0.9  # an overflow is cleared down to this share of the bound, so that not every put has to scan
_STALE_S = 600.0  # a temporary file this old was left by a killed process


def feature_key(
    content_key: str, fingerprint: str, num_frames: int, start: float | None = None, end: float | None = None
) -> str:
    """The cache key of one video, or of its seconds ``start`` to ``end``, under one model and frame count (hex)."""
    segment = () if start is None and end is None else (str(start), str(end))
    parts = "\x1f".join((FORMAT, content_key, fingerprint, str(num_frames), *segment))
    return hashlib.blake2b(parts.encode(), digest_size=20).hexdigest()


class EmbeddingCache:
    """Video features by key, at most ``max_bytes`` on disk. Safe with several processes.

    Args:
        folder: where the entries lie; made if absent.
        max_bytes: bound of all entries together; 0 turns the cache off.
    """

    def __init__(self, folder: str | os.PathLike[str], max_bytes: int) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        if max_bytes:
            self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, key: str) -> VideoFeatures | None:
        """The entry of ``key``, mapped from disk (CPU tensors), or None.

        A corrupt entry is removed with a warning and counts as absent.
        """
        path = self._path(key)
        if not self.max_bytes:
            return None
        try:
            features = _read(path, key)
            os.utime(path)  # marks the use for eviction; access times are often off
        except FileNotFoundError:
            return None
        except (pa.ArrowInvalid, OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"embedding cache entry {path.name} is corrupt ({error}); removed", stacklevel=2)
            self._remove(path)
            return None
        return features

    def put(self, key: str, features: VideoFeatures) -> None:
        """Store an entry and evict the least recently used ones beyond the bound.

        An entry that alone exceeds the bound is not stored.
        """
        if not self.max_bytes or features.nbytes() > self.max_bytes:
            return
        temporary = self.folder / f"{key}.{uuid.uuid4().hex}.tmp"
        try:
            _write(temporary, key, features)
            size = temporary.stat().st_size
            if size > self.max_bytes:
                return
            with self._locked() as total_file:
                total = _read_total(total_file)
                total = self._scan_and_evict(size) if total is None or total + size > self.max_bytes else total
                path = self._path(key)
                replaced = path.stat().st_size if path.exists() else 0
                temporary.replace(path)
                _write_total(total_file, total + size - replaced)
        finally:
            temporary.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.arrow"

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of every entry, oldest first."""
        found = []
        for path in self.folder.glob("*.arrow"):
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            found.append((status.st_mtime, status.st_size, path))
        return sorted(found)

    def _scan_and_evict(self, incoming: int) -> int:
        """Make room for ``incoming`` bytes; returns the bytes left. Called under the lock."""
        for leftover in self.folder.glob("*.tmp"):
            try:
                if time.time() - leftover.stat().st_mtime > _STALE_S:
                    leftover.unlink()
            except FileNotFoundError:
                continue
        entries = self._entries()
        total = sum(size for _, size, _ in entries)
        if total + incoming <= self.max_bytes:
            return total
        for _, size, path in entries:
            if total + incoming <= max(self.max_bytes * _FILL, incoming):
                break
            path.unlink(missing_ok=True)
            total -= size
        return total

    def _remove(self, path: Path) -> None:
        with self._locked() as total_file:
            path.unlink(missing_ok=True)
            _write_total(total_file, None)  # counted afresh by the next put

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """An exclusive lock between processes; yields the descriptor of the file with the running total."""
        descriptor = os.open(self.folder / "total", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            os.close(descriptor)  # releases the lock


def _read_total(descriptor: int) -> int | None:
    text = os.pread(descriptor, 32, 0)
    return int(text) if text.isdigit() else None


def _write_total(descriptor: int, total: int | None) -> None:
    os.ftruncate(descriptor, 0)
    if total is not None:
        os.pwrite(descriptor, str(total).encode(), 0)


def _write(path: Path, key: str, features: VideoFeatures) -> None:
    rows = []
    for name, tensor in features.tensors().items():
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        rows.append((name, str(tensor.dtype), list(tensor.shape), zlib.crc32(data), data))
    columns = [list(column) for column in zip(*rows, strict=True)]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    metadata = {"format": FORMAT, "key": key, "features": json.dumps(features.metadata())}
    schema = _SCHEMA.with_metadata(metadata)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.record_batch(arrays, schema=schema))


def _read(path: Path, key: str) -> VideoFeatures:
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    buffer = pa.py_buffer(mapped)
    batch = pa.ipc.open_file(pa.BufferReader(buffer)).get_batch(0)
    metadata = {name.decode(): value.decode() for name, value in (batch.schema.metadata or {}).items()}
    if metadata["format"] != FORMAT or metadata["key"] != key:
        raise ValueError("it was written for another key or format")
    data: Any = batch.column("data")
    offsets = np.frombuffer(data.buffers()[1], dtype=np.int64)[: len(data) + 1] + (
        data.buffers()[2].address - buffer.address
    )
    rows = batch.drop_columns(["data"]).to_pylist()
    tensors = {
        row["name"]: _tensor(mapped, int(start), int(end), row)
        for row, start, end in zip(rows, offsets[:-1], offsets[1:], strict=True)
    }
    return VideoFeatures.from_parts(tensors, json.loads(metadata["features"]))


def _tensor(mapped: mmap.mmap, start: int, end: int, row: dict[str, Any]) -> Tensor:
    if not 0 <= start <= end <= len(mapped):
        raise ValueError("a tensor lies outside the file")
    data = np.frombuffer(mapped, dtype=np.uint8, count=end - start, offset=start)
    if zlib.crc32(data.data) != row["crc32"]:
        raise ValueError(f"checksum of {row['name']} differs")
    flat = torch.from_numpy(data) if data.size else torch.empty(0, dtype=torch.uint8)
    dtype = _DTYPES[row["dtype"]]
    if start % dtype.itemsize:
        flat = flat.clone()
    return flat.view(dtype).reshape(row["shape"])
