"""Models: tensors in, tensors out; `keras.ops` only, on any Keras backend. Keras is imported when first needed."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from modeling.computation import DTYPES as DTYPES
from modeling.computation import Computation as Computation
from modeling.config import Config as Config
from modeling.config import load_config as load_config

if TYPE_CHECKING:
    from modeling.public import *  # noqa: F403


def __getattr__(name: str) -> Any:
    # The verbs read a Config before they start a backend: Keras must not be imported by then. `from modeling import
    # masks` asks here first; looked up in `public` while a module that `public` imports is loading, it is a circle.
    if importlib.util.find_spec(f"modeling.{name}") is None:
        public = importlib.import_module("modeling.public")
        if hasattr(public, name):
            return getattr(public, name)
    raise AttributeError(f"module 'modeling' has no attribute {name!r}")
