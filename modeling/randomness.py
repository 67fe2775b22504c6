"""Randomness without hidden state: every dropout mask is a function of a key and of the order of calls.

A key is uint32[2]. Inside `with seeded(key)` the n-th draw uses fold_in(key, n); blocks under rematerialisation
re-enter the scope with a key drawn before, so that the recomputed mask is the same.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import keras

from ground.keys import fold_in
from ground.tensors import Tensor, ops


class _Scope:
    def __init__(self, key: Tensor | None) -> None:
        self.key = key
        self.calls = 0


_current: contextvars.ContextVar[_Scope | None] = contextvars.ContextVar("seeded", default=None)


@contextlib.contextmanager
def seeded(key: Tensor | None) -> Iterator[None]:
    """Let every dropout inside derive its mask from `key` (uint32[2]) and the number of draws before it.

    With None a draw inside is an error.
    """
    token = _current.set(_Scope(key))
    try:
        yield
    finally:
        _current.reset(token)


@contextlib.contextmanager
def seeded_by_default(generator: keras.random.SeedGenerator, training: bool) -> Iterator[None]:
    """Keep the surrounding scope; in training without one (plain `model.fit`) take a key from `generator`."""
    if not training or _current.get() is not None:
        yield
        return
    with seeded(ops.cast(generator.next(), "uint32")):
        yield


def next_key() -> Tensor:
    """Return the next key of the surrounding scope, uint32[2]."""
    scope = _current.get()
    if scope is None or scope.key is None:
        raise RuntimeError("a random draw outside of `with seeded(key)`")
    scope.calls += 1
    return fold_in(scope.key, scope.calls)


class _Key(keras.random.SeedGenerator):
    """A given key in the only form that keras.random accepts; holds no variable."""

    def __init__(self, key: Tensor) -> None:
        self.key = key

    def next(self, ordered: bool = True) -> Tensor:
        """Return the key in the type of the backend: 31 bits signed for TensorFlow."""
        if keras.config.backend() == "tensorflow":
            return ops.cast(ops.bitwise_right_shift(self.key, ops.cast(1, "uint32")), "int32")
        return self.key


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero each element with probability `rate` and scale the others by 1 / (1 - rate), when training."""
    if not training or rate == 0.0:
        return x
    return keras.random.dropout(x, rate, seed=_Key(next_key()))


def gumbel(shape: tuple[int | Tensor, ...]) -> Tensor:
    """Draw float32 values which, added to scores, make the greatest a draw from their softmax."""
    uniform = keras.random.uniform(shape, minval=1e-20, maxval=1.0, dtype="float32", seed=_Key(next_key()))
    return -ops.log(-ops.log(uniform))


def normal(shape: tuple[int | Tensor, ...], deviation: float) -> Tensor:
    """Draw float32 values of mean 0."""
    return keras.random.normal(shape, stddev=deviation, dtype="float32", seed=_Key(next_key()))
