"""Gradients taken inside of a task: the one thing that keras.ops lacks, by backend.

Tasks need it where a loss depends on a gradient (adversarial training) or no engine is at hand (Fisher information).
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import keras

from ground.tensors import Tensor, ops


def gradient(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return d function(x) / d x of a scalar function, in x's shape; a constant to any gradient taken around it."""
    if keras.config.backend() == "tensorflow":
        tensorflow = importlib.import_module("tensorflow")
        # A tensor of its own: where `function` holds the same one as a constant, that one is not watched.
        x = tensorflow.identity(x)
        with tensorflow.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(x)
            value = function(x)
        result = tape.gradient(value, x)
    else:
        result = _jax().grad(function)(x)
    return ops.stop_gradient(result)


def variable_gradients(
    function: Callable[..., Tensor], variables: Sequence[keras.Variable]
) -> Callable[..., list[Tensor]]:
    """Return the compiled function of the same tensors that gives d function / d variable, dense, for each variable."""
    if keras.config.backend() == "tensorflow":
        tensorflow = importlib.import_module("tensorflow")
        values = [variable.value for variable in variables]

        def by_tape(*arguments: Any) -> list[Tensor]:
            with tensorflow.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(values)
                result = function(*arguments)
            return [
                tensorflow.convert_to_tensor(part)
                for part in tape.gradient(result, values, unconnected_gradients="zero")
            ]

        return tensorflow.function(by_tape, autograph=False)
    jax = _jax()

    def of_values(values: list[Tensor], *arguments: Any) -> Tensor:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(*arguments)

    by_transformation = jax.jit(jax.grad(of_values))
    return lambda *arguments: by_transformation([variable.value for variable in variables], *arguments)


def _jax() -> Any:
    if keras.config.backend() != "jax":
        raise NotImplementedError(f"gradients inside of a task on Keras's {keras.config.backend()} backend")
    return importlib.import_module("jax")
