"""Safetensors: opened without reading numbers, written a tensor at a time.

Differs from the library's own functions in memory alone: those hold a whole file, these hold a tensor.
"""

import contextlib
import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy
import numpy as np
import safetensors
from absl.app import UsageError

from conversion.lazy import Array, LazyTensor, Tensors
from ground.documents import parse_json

_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_WHOLE = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
_TYPES = {**_FLOATS, **_WHOLE, "U16": "uint16", "U32": "uint32", "U64": "uint64"}
_NAMES = {numpy_name: name for name, numpy_name in _TYPES.items()}
_ALIGNMENT_BYTES = 8


def open_safetensors(path: Path) -> dict[str, Array]:
    """Return the tensors of a safetensors file; raise `UsageError` for a damaged one."""
    # Of a folder safetensors says "No such device".
    path.open("rb").close()
    tensors: dict[str, Array] = {}
    # The library checks that the places lie in the file; it reads by mapping it, which counts as memory once more.
    with _whole_safetensors(path), safetensors.safe_open(path, framework="np") as file:
        names = list(file.keys())
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = parse_json(stream.read(length), dict[str, Any], where=str(path), what="a header")
    for name in names:
        described = header[name]
        kind = _TYPES.get(described["dtype"])
        if kind is None:
            raise UsageError(f"{name} of {path} has numbers of type {described['dtype']}; expected float weights")
        begin = 8 + length + described["data_offsets"][0]
        read = _reader(path, name, begin, tuple(described["shape"]), np.dtype(kind))
        tensors[name] = LazyTensor(tuple(described["shape"]), np.dtype(kind), read)
    return tensors


def _reader(
    path: Path, name: str, begin: int, shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        size = math.prod(shape) * dtype.itemsize
        numbers = np.fromfile(path, np.uint8, size, offset=begin)
        if len(numbers) != size:
            raise UsageError(f"{name} of {path} is cut short; copy the file again")
        return numbers.view(dtype).reshape(shape)

    return read


@contextlib.contextmanager
def _whole_safetensors(path: Path) -> Iterator[None]:
    try:
        yield
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise UsageError(f"{path} is not a whole safetensors file ({reason}); copy it again") from None


def save_safetensors(path: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> str:
    """Write `tensors` to `path`, each in its own type; return the SHA-256 of the file."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, value in tensors.items():
        begin, end = end, end + value.nbytes
        header[name] = {"dtype": _NAMES[value.dtype.name], "shape": list(value.shape), "data_offsets": [begin, end]}
    described = json.dumps(header).encode()
    described += b" " * (-len(described) % _ALIGNMENT_BYTES)
    digest = hashlib.sha256()
    # Written by Python, whose OSError tells a full disk; the library's own error does not.
    with path.open("wb") as stream:

        def put(content: bytes | memoryview) -> None:
            digest.update(content)
            stream.write(content)

        put(struct.pack("<Q", len(described)) + described)
        for value in tensors.values():
            # No name holds the numbers here: a second tensor would be in memory with the next.
            put(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
