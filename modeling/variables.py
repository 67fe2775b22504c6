"""Variables by name: the checkpoint format, initial values from seed and name alone, shapes without allocation."""

import hashlib
import math
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import keras
import numpy as np

from ground.tensors import named_variables, ops

Initializer = Callable[..., Any]
Model = TypeVar("Model", bound=keras.Model)


class Initialization:
    """Initial values per variable name: BERT's truncated normal for tables and kernels.

    A value depends on (seed, name, shape) alone: not on the order of creation, the backend or the rest of the model.
    """

    def __init__(self, stddev: float, seed: int) -> None:
        self.stddev = stddev
        self.seed = seed

    def truncated_normal(self, layer: keras.layers.Layer, name: str) -> Initializer:
        """Initializer of variable `name` of `layer` (being built): normal, redrawn beyond two deviations."""
        # The model's own name is no part of a variable's name.
        full_name = f"{str(layer.path).partition('/')[2]}/{name}"

        def initializer(shape: tuple[int, ...], dtype: Any = None) -> Any:
            words = np.frombuffer(hashlib.sha256(full_name.encode()).digest(), np.uint32)
            generator = np.random.default_rng([self.seed, *words.tolist()])
            values = generator.standard_normal(int(np.prod(shape)), np.float32)
            while (outside := np.flatnonzero(np.abs(values) > 2.0)).size:
                values[outside] = generator.standard_normal(outside.size, np.float32)
            return ops.convert_to_tensor(self.stddev * values.reshape(shape), dtype)

        return initializer


def declared(build: Callable[[], Model]) -> Model:
    """Return the model that `build` constructs, its variables with names and shapes but without values."""
    model: list[Model] = []
    failure: list[BaseException] = []

    def declare() -> None:
        try:
            with keras.StatelessScope(initialize_variables=False):
                model.append(build())
        except BaseException as error:
            failure.append(error)

    # Keras keeps declared variables in a list of the thread and would allocate them at its next stateless scope.
    thread = threading.Thread(target=declare)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return model[0]


def variable_shapes(build: Callable[[], keras.Model]) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the variables of the model that `build` constructs, without allocating it."""
    return {name: tuple(variable.shape) for name, variable in named_variables(declared(build)).items()}


def count_parameters(build: Callable[[], keras.Model]) -> int:
    """Return the number of parameters of the model that `build` constructs, without allocating it."""
    return count_declared(declared(build))


def count_declared(model: keras.Model) -> int:
    """Return the number of parameters of a model, be it allocated or only declared."""
    return sum(math.prod(variable.shape) for variable in named_variables(model).values())
