"""Generation under TensorFlow: a loop in one `tf.function`; the cache grows on a CPU and is static under XLA."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from generation.decoding import Decoding, Search, bucket
from generation.model import Decodable, Features, Tensors
from generation.search import State

Carry = tuple[Any, State, Any]
"""Steps done, state of the search, self-attention cache."""


class TensorFlowExecutor:
    """Compiles encoder and segment; without XLA once for all shapes, with it once for each bucket of them.

    Args:
        model: what generates.
        search: the search over its scores.
        compiled: with XLA; by default where there is a GPU or TPU.
    """

    def __init__(self, model: Decodable, search: Search, *, compiled: bool | None = None) -> None:
        if compiled is None:
            compiled = bool(tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("TPU"))
        self.compiled = compiled
        self.decoding = Decoding(model, search, grows=not compiled)
        self._start = tf.function(model.start, autograph=False, jit_compile=compiled)
        self._loop = tf.function(self._steps, autograph=False, jit_compile=compiled)
        self.prepared = model.prepare()
        # Without XLA: one program of each, for any number and length of sources.
        self._programs: tuple[Callable[..., Any], Callable[..., Any]] | None = None

    @property
    def traces(self) -> int:
        """How many times the loop was traced."""
        return self._loop.experimental_get_tracing_count()

    def batch_for(self, sources: int) -> int:
        """Return the rows that so many sources are given: without XLA as many."""
        return bucket(sources) if self.compiled else sources

    def length_for(self, tokens: int) -> int:
        """Return the length of rows that sources of so many tokens are given: without XLA theirs."""
        return bucket(tokens, least=16) if self.compiled else tokens

    def begin(self, features: Features, state: State) -> TensorFlowBatch:
        """Encode the sources."""
        tensors = {name: tf.constant(value) for name, value in features.items()}
        state = {name: tf.constant(value) for name, value in state.items()}
        cache = self.decoding.empty_cache(int(state["open"].shape[0]))
        start, loop = self._start, self._loop
        if not self.compiled:
            start, loop = self._programs = self._programs or self._any_shape(tensors, (tf.constant(0), state, cache))
        return TensorFlowBatch(loop, (tf.constant(0), state, cache), start(tensors), self.prepared)

    def _any_shape(self, features: Tensors, carry: Carry) -> tuple[Callable[..., Any], Callable[..., Any]]:
        """Trace encoder and loop with the shapes open that change from batch to batch or from segment to segment."""
        rows = tf.nest.map_structure(lambda x: tf.TensorSpec([None] * x.shape.rank, x.dtype), features)
        start = self._start.get_concrete_function(rows)
        memory = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), start.structured_outputs)
        step = tf.TensorSpec((), tf.int32)
        state = {name: tf.TensorSpec([None, *x.shape[1:]], x.dtype) for name, x in carry[1].items()}
        cache = tf.nest.map_structure(lambda x: tf.TensorSpec([None, x.shape[1], None, x.shape[3]], x.dtype), carry[2])
        prepared = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), self.prepared)
        loop = self._loop.get_concrete_function(step, (step, state, cache), memory, prepared)
        return start, loop

    def _steps(self, stop: tf.Tensor, carry: Carry, memory: Tensors, prepared: Tensors) -> Carry:
        def more(step: tf.Tensor, state: State, cache: Any) -> tf.Tensor:
            return (step < stop) & tf.reduce_any(state["open"])

        def body(step: tf.Tensor, state: State, cache: Any) -> Carry:
            step, state, cache = self.decoding.step(step, state, cache, memory, prepared)
            # Keras's operations lose static shapes, which a loop must keep.
            return step, {name: tf.ensure_shape(state[name], carry[1][name].shape) for name in state}, cache

        shapes = tf.nest.map_structure(lambda x: x.shape, carry)
        return tf.while_loop(more, body, carry, shape_invariants=shapes, parallel_iterations=1)


class TensorFlowBatch:
    """See `generation.decoding.Batch`."""

    def __init__(self, loop: Callable[..., Carry], carry: Carry, memory: Tensors, prepared: Tensors) -> None:
        self.loop = loop
        self.carry = carry
        self.memory = memory
        self.prepared = prepared

    def segment(self, steps: int) -> State:
        """Generate at most so many tokens; return the state."""
        self.carry = self.loop(self.carry[0] + steps, self.carry, self.memory, self.prepared)
        return self.carry[1]

    def keep(self, places: np.ndarray, real: np.ndarray) -> None:
        """Leave the sources at these places alone; those that are not `real` only fill the batch and are closed."""
        step, *held = self.carry
        (state, cache), self.memory = tf.nest.map_structure(lambda x: tf.gather(x, places), (held, self.memory))
        self.carry = (step, {**state, "open": state["open"] & real}, cache)
