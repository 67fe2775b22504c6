"""Paddle's `.pdparams`: a pickle of NumPy arrays by name, of which nothing but arrays is taken."""

import collections
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from absl.app import UsageError

from conversion.lazy import Array

# What a pickle of NumPy arrays asks for, under the module names of NumPy 1 and 2.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("numpy", "ndarray"): object,  # only named; `_reconstruct` makes the array
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): lambda text, encoding: text.encode("latin1"),
}
_RECONSTRUCT = ("numpy.core.multiarray", "numpy._core.multiarray")
_LISTS = ("StructuredToParameterName@@", "UnpackBigParamInfor@@")
"""Keys under which Paddle keeps other names of the tensors."""
_EXPECTED = "expected names and arrays, as paddle.save(model.state_dict(), FILE) writes them"


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in _RECONSTRUCT and name == "_reconstruct":
            # Any other class would have its numbers read into it.
            return lambda kind, shape, code: np.ndarray(0, "b")
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def open_paddle(path: Path) -> dict[str, Array]:
    """Return the tensors of a file, which is held in memory; raise `UsageError` for one with other objects."""
    try:
        with path.open("rb") as stream:
            state = _ArraysOnly(stream).load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, LookupError, MemoryError) as error:
        reason = str(error).partition("\n")[0][:200]
        if isinstance(error, pickle.UnpicklingError) and reason.startswith("it asks for"):
            reason = f"holds objects besides arrays, which could run code ({reason})"
        else:
            reason = f"is not a whole file of Paddle ({reason})"
        raise UsageError(f"{path} {reason}; {_EXPECTED}") from None
    if not isinstance(state, dict) or _LISTS[1] in state:
        what = "tensors in pieces" if isinstance(state, dict) else f"a {type(state).__name__}"
        raise UsageError(f"{path} holds {what}; {_EXPECTED}")
    return {str(name): value for name, value in state.items() if isinstance(value, np.ndarray) and name not in _LISTS}
