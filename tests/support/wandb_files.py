"""What Weights & Biases has written of runs that are offline: records in the format of LevelDB's log."""

import struct
from collections.abc import Iterator
from pathlib import Path

from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 32_768
HEADER = 7  # bytes, of the file and of each piece
WHOLE, LAST = 1, 4  # kinds of piece


def records(folder: Path) -> list[Record]:
    """Of all attempts, oldest first, as `wandb sync` would send them."""
    paths = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    return [Record.FromString(content) for path in paths for content in _contents(path.read_bytes())]


def _contents(data: bytes) -> Iterator[bytes]:
    at, whole = HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:  # no room for a piece: padding
            at += BLOCK - at % BLOCK
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + HEADER])
        whole += data[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (WHOLE, LAST):
            yield whole
            whole = b""
