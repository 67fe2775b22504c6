"""Generation under TensorFlow: a static cache, and a loop that XLA compiles once for each bucket of shapes."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from generation.decoding import Decoding, Search, bucket
from generation.model import Decodable, Features, Tensors
from generation.search import State

Carry = tuple[Any, State, Any]
"""Steps done, state of the search, self-attention cache."""


class TensorFlowExecutor:
    """Compiles encoder and segment for each power of two of sources and of their tokens.

    XLA serves CPUs too: with a step's hundreds of small operations in one program a base model writes 1.5 times as many
    tokens a second there as operation by operation, and is ready as soon (benchmarks/generation.py).

    Args:
        model: what generates.
        search: the search over its scores.
    """

    def __init__(self, model: Decodable, search: Search) -> None:
        self.model = model
        self.decoding = Decoding(model, search)
        self._start = tf.function(model.start, autograph=False, jit_compile=True)
        self._loop = tf.function(self._steps, autograph=False, jit_compile=True)
        self.prepared = model.prepare()

    @property
    def traces(self) -> int:
        """How many times the loop was traced."""
        return self._loop.experimental_get_tracing_count()

    def batch_for(self, sources: int) -> int:
        """Return the rows that so many sources are given."""
        return bucket(sources)

    def length_for(self, tokens: int) -> int:
        """Return the length of rows that sources of so many tokens are given."""
        return bucket(tokens, least=16)

    def begin(self, features: Features, state: State) -> TensorFlowBatch:
        """Encode the sources."""
        memory = self._start({name: tf.constant(value) for name, value in features.items()})
        cache = self.decoding.empty_cache(len(state["open"]))
        return TensorFlowBatch(self, {name: tf.constant(value) for name, value in state.items()}, cache, memory)

    def _steps(self, stop: tf.Tensor, carry: Carry, memory: Tensors, prepared: Tensors) -> Carry:
        # A variable that is read inside the loop is copied at its begin, all weights in every segment.
        variables = self.model.variables
        weights = [(variable, tf.convert_to_tensor(variable.value)) for variable in variables]

        def more(step: tf.Tensor, state: State, cache: Any) -> tf.Tensor:
            return (step < stop) & tf.reduce_any(state["open"])

        def body(step: tf.Tensor, state: State, cache: Any) -> Carry:
            with keras.StatelessScope(weights, initialize_variables=False):
                step, state, cache = self.decoding.step(step, state, cache, memory, prepared)
            # Keras's operations lose static shapes, which a loop must keep.
            return step, {name: tf.ensure_shape(state[name], carry[1][name].shape) for name in state}, cache

        return tf.while_loop(more, body, carry, parallel_iterations=1)


class TensorFlowBatch:
    """See `generation.decoding.Batch`."""

    def __init__(self, executor: TensorFlowExecutor, state: State, cache: Any, memory: Tensors) -> None:
        self.executor = executor
        self.steps = 0
        self.state = state
        self.cache = cache
        self.memory = memory

    def segment(self, steps: int) -> State:
        """Generate at most so many tokens; return the state."""
        executor, begin = self.executor, tf.constant(self.steps)
        self.steps += steps
        slots = executor.decoding.slots_until(self.steps)
        more = slots - self.cache[0][0].shape[2]
        if more:
            self.cache = tf.nest.map_structure(lambda x: tf.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))), self.cache)
        carry = begin, self.state, self.cache
        _, self.state, self.cache = executor._loop(tf.constant(self.steps), carry, self.memory, executor.prepared)
        return self.state

    def keep(self, places: np.ndarray, real: np.ndarray) -> None:
        """Leave the sources at these places alone; those that are not `real` only fill the batch and are closed."""
        held = self.state, self.cache, self.memory
        state, self.cache, self.memory = tf.nest.map_structure(lambda x: tf.gather(x, places), held)
        self.state = {**state, "open": state["open"] & real}
