"""Tensors whose numbers are read when they are asked for, so that a checkpoint need not fit into memory.

Shape and type are known before. Every reading goes to the file again: only what is in use is held.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class LazyTensor:
    """A tensor that `read` returns; `np.asarray(tensor)` reads it.

    Attributes:
        shape: of the numbers.
        dtype: of the numbers.
        read: returns them, and keeps no copy; raises `UsageError` where the file is damaged.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[], np.ndarray]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of numbers."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers in memory."""
        return self.size * self.dtype.itemsize

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self.read(), dtype)


Array = np.ndarray | LazyTensor
Tensors = Mapping[str, Array]


def derived(shape: tuple[int, ...], function: Callable[..., np.ndarray], *sources: Array) -> LazyTensor:
    """Return the tensor of `shape` and the type of its first source that `function` of all sources gives."""
    return LazyTensor(shape, sources[0].dtype, lambda: function(*(np.asarray(source) for source in sources)))


def rows(value: Array, first: int, last: int | None = None) -> Array:
    """Return `value[first:last]`; the tensor itself where these are all rows."""
    kept = range(value.shape[0])[first:last]
    if len(kept) == value.shape[0]:
        return value
    return derived((len(kept), *value.shape[1:]), lambda array: array[first:last], value)


def as_float32(value: Array) -> Array:
    """Return the tensor in float32."""
    if isinstance(value, np.ndarray):
        return np.asarray(value, np.float32)
    if value.dtype == np.float32:
        return value
    return LazyTensor(value.shape, np.dtype(np.float32), lambda: np.asarray(value, np.float32))


def is_floating(dtype: np.dtype[Any]) -> bool:
    """Return whether numbers of the type are weights; NumPy does not count bfloat16 among its own."""
    return np.issubdtype(dtype, np.floating) or dtype.name == "bfloat16"
