"""Any value as nested plain values, and those as places: {"task/loss_weights/masked_lm": 1.0}."""

from __future__ import annotations

import dataclasses
import hashlib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conversion.lazy import LazyTensor

_SCALARS = (bool, int, float, str, types.NoneType)


def digest(content: bytes) -> str:
    """Return the beginning of the SHA-256 of `content`, which is enough to tell two files apart."""
    return hashlib.sha256(content).hexdigest()[:12]


def plain(value: Any) -> Any:
    """Return scalars, tuples of scalars and dictionaries of these; an array becomes its type, shape and digest.

    Objects become the dictionary of their attributes, with the name of their class as `is`; functions their name.
    """
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, LazyTensor):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)} {digest(np.ascontiguousarray(value).tobytes())}"
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, bytes):
        return digest(value)
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        items = [plain(each) for each in value]
        scalar = all(isinstance(each, _SCALARS) for each in items)
        return tuple(items) if scalar else {str(number): each for number, each in enumerate(items)}
    if isinstance(value, type | types.FunctionType | types.MethodType | types.BuiltinFunctionType):
        return value.__qualname__
    if hasattr(value, "numpy"):
        return plain(value.numpy())
    fields = (
        {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if dataclasses.is_dataclass(value)
        else vars(value)
    )
    return {"is": type(value).__name__, **plain(fields)}


def places(value: Any, place: str = "") -> dict[str, Any]:
    """Return the leaves of nested plain values by the path that leads to them.

    Example: {"plan": {"steps": 3, "unit": "tokens"}} -> {"plan/steps": 3, "plan/unit": "tokens"}
    """
    if not isinstance(value, Mapping):
        return {place: value}
    found: dict[str, Any] = {}
    for name, each in value.items():
        found |= places(each, f"{place}/{name}" if place else str(name))
    return found
