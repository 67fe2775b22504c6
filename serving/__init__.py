"""From a run folder to answers: `load`, and what it returns; nothing is imported before it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.loading import Loaded, load

__all__ = ["Loaded", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'serving' has no attribute {name!r}")
    return getattr(importlib.import_module("serving.loading"), name)
