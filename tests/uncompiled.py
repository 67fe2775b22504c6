"""TensorFlow operation by operation, for tests of runs so short that tracing their step takes longer than the steps.

What such a test holds of a run must be held of a compiled one elsewhere, where tracing might break it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Run every `tf.function` as plain Python inside the block; on JAX nothing changes."""
    import keras

    if keras.config.backend() != "tensorflow":
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(False)
