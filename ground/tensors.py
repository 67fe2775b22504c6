"""The names of Keras that model code is written with: `ops`, `Tensor`, and the variables of a model by name."""

from typing import Any

import keras

# keras.ops infers unions over all backends, None among them: typed as Any, no call needs a cast.
ops: Any = keras.ops
Tensor = Any


def named_variables(model: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Return every weight of the model by its path without the model's own name: the names of the checkpoint format.

    Raises `ValueError` for two weights of one name.
    """
    variables = {variable.path.removeprefix(f"{model.path}/"): variable for variable in model.weights}
    if len(variables) != len(model.weights):
        raise ValueError(f"{model.name} has variables of equal names")
    return variables
