"""A function of a model and a batch as compiled programs, kept from one call to the next.

Which compiler is that of Keras's backend: `tf.function`, whose program takes every shape, `jax.jit`, which has one for
each, or none.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]


class Programs:
    """The programs of one function.

    Attributes:
        free: whether one program takes every shape.

    Args:
        function: (model, features) -> arrays by name; computes nothing but its return value.
        model: a built Keras model.
        of_shape: whether the function needs to know the shape: each is a program, whatever the backend.
    """

    def __init__(
        self, function: Callable[[Any, Mapping[str, Any]], Mapping[str, Any]], model: Any, *, of_shape: bool = False
    ):
        import keras

        self._function, self._model = function, model
        self.free = keras.config.backend() == "tensorflow" and not of_shape
        make = {"tensorflow": self._tensorflow, "jax": self._jax}
        self._make = make.get(keras.config.backend(), lambda batch: self._plain)
        self._kept: dict[Any, Callable[[Arrays], Mapping[str, Any]]] = {}

    @property
    def count(self) -> int:
        """How many programs there are."""
        return len(self._kept)

    def predict(self, batches: Iterable[Arrays]) -> Iterator[dict[str, np.ndarray]]:
        """Yield what the function says of each batch."""
        for batch in batches:
            key = tuple(
                (name, value.ndim if self.free else value.shape, value.dtype.str)
                for name, value in sorted(batch.items())
            )
            if key not in self._kept:
                self._kept[key] = self._make(batch)
            yield {name: np.asarray(value) for name, value in self._kept[key](batch).items()}

    def _tensorflow(self, batch: Arrays) -> Callable[[Arrays], Mapping[str, Any]]:
        import tensorflow

        from modeling.fusion import plain

        tf: Any = tensorflow
        shapes = {
            name: tf.TensorSpec([None] * value.ndim if self.free else value.shape, value.dtype)
            for name, value in batch.items()
        }
        program = tf.function(lambda features: self._function(self._model, features), autograph=False)
        # XLA would compile what `fused` marks once more for each shape, for seconds.
        with plain() if self.free else contextlib.nullcontext():
            concrete = program.get_concrete_function(shapes)
        return lambda given: concrete({name: tf.constant(value) for name, value in given.items()})

    def _jax(self, batch: Arrays) -> Callable[[Arrays], Mapping[str, Any]]:
        import jax
        import keras

        variables = self._model.variables

        def pure(values: Any, features: Any) -> Mapping[str, Any]:
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return self._function(self._model, features)

        compiled = jax.jit(pure)
        return lambda given: compiled([variable.value for variable in variables], dict(given))

    def _plain(self, batch: Arrays) -> Mapping[str, Any]:
        import keras

        given = {name: keras.ops.convert_to_tensor(value) for name, value in batch.items()}
        return {name: keras.ops.convert_to_numpy(value) for name, value in self._function(self._model, given).items()}
