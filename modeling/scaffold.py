"""A layer that a model has only while it learns: checkpoints keep it for a run that goes on, nobody loads it.

    with scaffolded(projection(12)):
        model = task.build_model()    # has `scaffold`, states of its own width -> states of width 12

Constructors of models are called far below whoever knows that one is wanted, so the wish is in the surroundings.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import keras

from modeling.computation import SCAFFOLD, Computation
from modeling.config import Config
from modeling.layers import Dense
from modeling.variables import Initialization

Scaffold = Callable[[Config, Initialization, Computation], keras.layers.Layer]
"""Constructor of a layer of the name SCAFFOLD."""

_wanted: contextvars.ContextVar[Scaffold | None] = contextvars.ContextVar("scaffold", default=None)


@contextlib.contextmanager
def scaffolded(wanted: Scaffold | None) -> Iterator[None]:
    """Let the models that are built inside have such a scaffold; None for none."""
    token = _wanted.set(wanted)
    try:
        yield
    finally:
        _wanted.reset(token)


def scaffold(config: Config, initialization: Initialization, computation: Computation) -> keras.layers.Layer | None:
    """Return the scaffold of a model; None where none is wanted."""
    wanted = _wanted.get()
    return None if wanted is None else wanted(config, initialization, computation)


def projection(width: int) -> Scaffold:
    """Return the constructor of x_BLD -> [B, L, width] without a bias."""

    def of(config: Config, initialization: Initialization, computation: Computation) -> Dense:
        return Dense(config.hidden_size, width, initialization, use_bias=False, dtype=computation.dtype, name=SCAFFOLD)

    return of
