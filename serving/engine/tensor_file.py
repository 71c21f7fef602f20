"""Tensors that clients send as ``torch.save`` wrote them, read without torch.load.

Such a file is a zip of a pickle and of raw numbers. The pickle may name four things here, none of which does anything
but keep its arguments; numbers must lie in the zip as they are, so that nothing grows when it is unpacked.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

_KINDS = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
}
_MOST_PICKLE = 1 << 12


class _Stored(NamedTuple):
    dtype: torch.dtype
    name: str


class _Described(NamedTuple):
    stored: Any
    offset: Any
    size: Any
    stride: Any


def _described(stored: object, offset: object, size: object, stride: object, *rest: object) -> _Described:
    return _Described(stored, offset, size, stride)


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401  what a pickle names
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _described
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in _KINDS:
            return _KINDS[name]
        raise ValueError(f"names {module}.{name}"[:80])

    def persistent_load(self, pid: Any) -> _Stored:  # noqa: ANN401  what a pickle holds
        _, dtype, name, *_ = pid
        return _Stored(dtype, str(name))


def read_rows(content: bytes) -> Tensor:
    """(N, D) of a file with one dense tensor of floats, (N, D) or (1, N, D), as its own type.

    Raises:
        ValueError: anything else.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return _rows(archive, len(content))
    except ValueError:
        raise
    except Exception as error:  # zipfile and pickle raise of everything for what they cannot read
        raise ValueError("it cannot be read") from error


def _rows(archive: zipfile.ZipFile, most: int) -> Tensor:
    (head,) = (info for info in archive.infolist() if info.filename.endswith("/data.pkl"))
    folder = head.filename.removesuffix("data.pkl")
    found = _Reader(io.BytesIO(_stored(archive, head, _MOST_PICKLE))).load()
    if not isinstance(found, _Described) or not isinstance(found.stored, _Stored):
        raise ValueError("it holds no dense tensor")
    size = tuple(int(each) for each in found.size)
    if len(size) == 3 and size[0] == 1:
        size = size[1:]
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"it is of shape {size}, not (tokens, width)"[:100])
    if found.offset != 0 or tuple(found.stride)[-2:] != (size[1], 1) or found.stored.dtype not in _KINDS.values():
        raise ValueError("its numbers are not contiguous floats: save tensor.contiguous().clone()")
    numbers = _stored(archive, archive.getinfo(f"{folder}data/{found.stored.name}"), most)
    if len(numbers) != prod(size) * found.stored.dtype.itemsize:
        raise ValueError("its numbers are more or fewer than its shape says: save tensor.contiguous().clone()")
    return torch.frombuffer(bytearray(numbers), dtype=found.stored.dtype).reshape(size)


def _stored(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    if info.compress_type != zipfile.ZIP_STORED or info.file_size > most:
        raise ValueError("a part of it is packed or too large")
    return archive.read(info)
