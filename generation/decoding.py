"""One step of generation, whatever the backend: the model's scores, the search's choice; and its loop's condition."""

from __future__ import annotations

import importlib
from typing import Protocol

import keras
import numpy as np
from absl.app import UsageError

from generation.model import Decodable, Features, SelfCache, Tensors
from generation.rows import Rows
from generation.search import Beams, State
from generation.settings import Settings
from ground.tensors import Tensor, ops

Search = Beams | Rows


def search_for(model: Decodable, settings: Settings) -> Search:
    """Return the search of these settings: one beam is greedy search, by its own path."""
    kind = Beams if settings.num_beams > 1 else Rows
    return kind(settings, model.tokens, model.vocab_size)


class Decoding:
    """Steps of a search over a model."""

    def __init__(self, model: Decodable, search: Search) -> None:
        self.model = model
        self.search = search

    def empty_cache(self, batch: int) -> SelfCache:
        """Return the self-attention cache before the first segment."""
        return self.model.empty_cache(batch, self.slots_until(1))

    def slots_until(self, stop: int) -> int:
        """Return the slots of the cache while there are fewer than `stop` tokens: 64 of each row, 256, 1024 ...

        Every step attends to all slots, the empty ones too; and every size is a program of its own.
        """
        columns = 64
        while columns < stop:
            columns *= 4
        return min(columns, self.search.length) * self.search.rows

    def step(
        self, step: Tensor, state: State, cache: SelfCache, memory: Tensors, prepared: Tensors
    ) -> tuple[Tensor, State, SelfCache]:
        """Generate one token of every row; `step` counts those before."""
        search = self.search
        token_BK = ops.take(state["tokens"], step, axis=2)
        visible = search.visible(state, step, cache[0][0].shape[2] // search.rows)
        scores, cache = self.model.step(token_BK, step, memory, cache, visible, step * search.rows, prepared)
        return step + 1, search.advance(state, step, scores), cache


class Batch(Protocol):
    """Sources that are generated side by side, on an executor's backend."""

    def segment(self, steps: int) -> State:
        """Generate at most so many tokens; return the state."""
        ...

    def keep(self, places: np.ndarray, real: np.ndarray) -> None:
        """Leave the sources at these places alone; those that are not `real` only fill the batch and are closed."""
        ...


class Executor(Protocol):
    """Runs steps on a backend, its programs compiled for as few shapes as it can."""

    def begin(self, features: Features, state: State) -> Batch:
        """Encode the sources."""
        ...

    def batch_for(self, sources: int) -> int:
        """Return the rows of the batch that so many sources are given."""
        ...

    def length_for(self, tokens: int) -> int:
        """Return the length of the rows that sources of so many tokens are given."""
        ...


def bucket(count: int, least: int = 1) -> int:
    """Return the power of two from `count` on, at least `least`."""
    return max(least, 1 << (count - 1).bit_length())


def executor_for(model: Decodable, search: Search) -> Executor:
    """Return the executor that the model brings, or that of Keras's backend."""
    if own := getattr(model, "executor", None):
        return own(search)
    backend = keras.config.backend()
    if backend == "tensorflow":
        return importlib.import_module("generation.tensorflow_executor").TensorFlowExecutor(model, search)
    if backend == "jax":
        return importlib.import_module("generation.jax_executor").JaxExecutor(model, search)
    raise UsageError(f"generation runs on tensorflow and jax, but Keras is on {backend}: set KERAS_BACKEND to one")
