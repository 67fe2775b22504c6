"""From a trained model to answers: `load`, and what it returns; nothing is imported before it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.loading import Loaded, load
    from serving.transformers_types import register_transformers

__all__ = ["Loaded", "load", "register_transformers"]
_MODULES = {"register_transformers": "serving.transformers_types"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'serving' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES.get(name, "serving.loading")), name)
