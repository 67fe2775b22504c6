"""Element-wise chains as one compiled pass: TensorFlow runs each operation by itself, XLA fuses them; JAX always does.

Compiling whole steps is slower on CPUs, where XLA's matrix products fall behind oneDNN's; so only chains without one
are compiled, and only inside `with fusing()` under a `tf.function`: exported graphs and eager calls stay plain. So do
replicas of a `tf.distribute` strategy, which would share one compiled function between several devices.
"""

import contextlib
import contextvars
import functools
import importlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import keras

Function = TypeVar("Function", bound=Callable[..., Any])

_fusing: contextvars.ContextVar[bool] = contextvars.ContextVar("fusing", default=False)
_plain: contextvars.ContextVar[bool] = contextvars.ContextVar("plain", default=False)


@contextlib.contextmanager
def fusing() -> Iterator[None]:
    """Let the functions marked with `fused` be compiled inside."""
    token = _fusing.set(True)
    try:
        yield
    finally:
        _fusing.reset(token)


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Let nothing be compiled inside, whatever `fusing` says: a graph that other programs read has plain operations."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def fused(function: Function) -> Function:
    """Mark a function of tensors, without variables or side effects, that is worth compiling into one pass."""
    compiled: Any = None

    @functools.wraps(function)
    def call(*tensors: Any) -> Any:
        nonlocal compiled
        if not _fusing.get() or _plain.get() or keras.config.backend() != "tensorflow":
            return function(*tensors)
        tensorflow = importlib.import_module("tensorflow")
        if not tensorflow.inside_function() or tensorflow.distribute.has_strategy():
            return function(*tensors)
        if compiled is None:
            compiled = tensorflow.function(function, jit_compile=True, autograph=False)
        return compiled(*map(tensorflow.convert_to_tensor, tensors))

    return call  # pyright: ignore[reportReturnType]
