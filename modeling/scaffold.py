"""A layer that a model has only while it learns: checkpoints keep it for a run that goes on, nobody loads it.

    with scaffolded(12):
        model = task.build_model()    # has `scaffold`, states of its own width -> states of width 12

Constructors of models are called far below whoever knows that one is wanted, so the wish is in the surroundings.
"""

import contextlib
import contextvars
from collections.abc import Iterator

from modeling.computation import SCAFFOLD, Computation
from modeling.config import Config
from modeling.layers import Dense
from modeling.variables import Initialization

_width: contextvars.ContextVar[int | None] = contextvars.ContextVar("scaffold", default=None)


@contextlib.contextmanager
def scaffolded(width: int | None) -> Iterator[None]:
    """Let the models that are built inside have a scaffold of that many outputs; None for none."""
    token = _width.set(width)
    try:
        yield
    finally:
        _width.reset(token)


def scaffold(config: Config, initialization: Initialization, computation: Computation) -> Dense | None:
    """Return x_BLD -> [B, L, width] without a bias; None where no scaffold is wanted."""
    width = _width.get()
    if width is None:
        return None
    return Dense(config.hidden_size, width, initialization, use_bias=False, dtype=computation.dtype, name=SCAFFOLD)
