"""Generation under JAX: a static cache, and a loop that is compiled once for each bucket of shapes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np

from generation.decoding import Decoding, Search, bucket
from generation.model import Decodable, Features, Tensors
from generation.search import State

Carry = tuple[Any, State, Any]
"""Steps done, state of the search, self-attention cache."""


class JaxExecutor:
    """Compiles encoder and segment for each power of two of sources and of their tokens.

    Args:
        model: what generates.
        search: the search over its scores.
    """

    def __init__(self, model: Decodable, search: Search) -> None:
        self.model = model
        self.decoding = Decoding(model, search)
        self.traces = 0
        """How many times the loop was traced."""
        # Weights are arguments: as constants they would be copied into every program.
        self._start = jax.jit(self._with_weights(model.start))
        self._loop = jax.jit(self._with_weights(self._steps), donate_argnums=2)
        self.prepared = jax.jit(self._with_weights(model.prepare))(self.weights)

    @property
    def weights(self) -> list[Any]:
        """The values of the model's variables."""
        return [variable.value for variable in self.model.variables]

    def batch_for(self, sources: int) -> int:
        """Return the rows that so many sources are given."""
        return bucket(sources)

    def length_for(self, tokens: int) -> int:
        """Return the length of rows that sources of so many tokens are given."""
        return bucket(tokens, least=16)

    def begin(self, features: Features, state: State) -> JaxBatch:
        """Encode the sources."""
        memory = self._start(self.weights, {name: jnp.asarray(value) for name, value in features.items()})
        cache = self.decoding.empty_cache(len(state["open"]))
        # Every buffer that the loop is given is given away to it, so that no two may be one.
        state, cache = jax.tree.map(lambda x: jnp.array(x, copy=True), (state, cache))
        return JaxBatch(self, state, cache, memory)

    def _with_weights(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(weights: list[Any], *arguments: Any) -> Any:
            mapping = list(zip(self.model.variables, weights, strict=True))
            with keras.StatelessScope(mapping, initialize_variables=False):
                return function(*arguments)

        return run

    def _steps(self, stop: jax.Array, carry: Carry, memory: Tensors, prepared: Tensors) -> Carry:
        self.traces += 1

        def more(carry: Carry) -> jax.Array:
            return (carry[0] < stop) & jnp.any(carry[1]["open"])

        def body(carry: Carry) -> Carry:
            return self.decoding.step(*carry, memory, prepared)

        return jax.lax.while_loop(more, body, carry)


class JaxBatch:
    """See `generation.decoding.Batch`."""

    def __init__(self, executor: JaxExecutor, state: State, cache: Any, memory: Tensors) -> None:
        self.executor = executor
        self.steps = 0
        self.state = state
        self.cache = cache
        self.memory = memory

    def segment(self, steps: int) -> State:
        """Generate at most so many tokens; return the state."""
        executor, begin = self.executor, jnp.int32(self.steps)
        self.steps += steps
        slots = executor.decoding.slots_until(self.steps)
        more = slots - self.cache[0][0].shape[2]
        if more:
            self.cache = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, more), (0, 0))), self.cache)
        carry = begin, self.state, self.cache
        stop, weights = jnp.int32(self.steps), executor.weights
        _, self.state, self.cache = executor._loop(weights, stop, carry, self.memory, executor.prepared)
        return self.state

    def keep(self, places: np.ndarray, real: np.ndarray) -> None:
        """Leave the sources at these places alone; those that are not `real` only fill the batch and are closed."""
        held = self.state, self.cache, self.memory
        state, self.cache, self.memory = jax.tree.map(lambda x: x[places], held)
        self.state = {**state, "open": state["open"] & real}
