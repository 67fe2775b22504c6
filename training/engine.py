"""What the loop needs of a task, an optimizer, a data set and an engine, and where a step's random key comes from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np

Tensor = Any
Terms = dict[str, tuple[Tensor, Tensor]]
"""name -> (weighted sum, weight); the mean is taken only after summing over micro-batches, replicas and batches."""
Batch = Mapping[str, np.ndarray]
"""Features; the leading axis of each is examples."""
Slots = dict[str, dict[str, Tensor]]

# The inferred types of keras.ops are unions over all backends, None among them.
ops: Any = keras.ops

TRAINING_STREAM = 1
EVALUATION_STREAM = 2


class Task(Protocol):
    """What is asked of a model. Everything but `build_model` is traced: no side effects, no data-dependent Python."""

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Weight of every loss term by its name."""
        ...

    def build_model(self) -> keras.Model:
        """Return a new, built model."""
        ...

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weight of each loss term, from the batch alone; those of parts of a batch add up to its own."""
        ...

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        """Return losses and metrics; all randomness comes from `seed`, a uint32[2] key."""
        ...

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what is wanted of each example; leading axis: examples."""
        ...


class Optimizer(Protocol):
    """Gradients -> updates, as in `optimization.Optimizer`."""

    def trainable(self, names: Iterable[str]) -> list[str]:
        """Return those of the variables that are to be trained."""
        ...

    def init(self, parameters: Mapping[str, Tensor]) -> Slots:
        """Return the slots of step 0."""
        ...

    def update(
        self, gradients: Mapping[str, Tensor], parameters: Mapping[str, Tensor], slots: Slots, step: Tensor
    ) -> tuple[dict[str, Tensor], Slots, dict[str, Tensor]]:
        """Return new parameters, new slots, and `learning_rate` and `gradient_norm`."""
        ...


class Dataset(Protocol):
    """Batches by number."""

    @property
    def num_examples(self) -> int:
        """Examples of one epoch."""
        ...

    def batch(self, step: int) -> Batch:
        """Return the batch of `step`: a pure function of (seed, step)."""
        ...


@runtime_checkable
class Engine(Protocol):
    """Runs a task's steps somewhere; the loop knows only this."""

    step: int
    seed: int

    def train(self, batches: Sequence[Batch]) -> list[dict[str, float]]:
        """Take one optimizer step a batch; return `loss`, `NAME_loss`, the metrics, `learning_rate`, `gradient_norm`.

        `skipped` is 1 for a step whose loss or gradient was not finite; it changed nothing but the step number. A
        metric whose weight is 0 is left out.
        """
        ...

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return `loss`, `NAME_loss` and the metrics over all batches: sums first, then one division."""
        ...

    def predict(self, batches: Iterable[Batch]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the task's predictions batch by batch."""
        ...

    def state(self) -> dict[str, np.ndarray]:
        """Return `model/NAME`, `optimizer/SLOT/NAME` and, with averaging, `ema/NAME`."""
        ...

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Set all of `state()`; raises `UsageError` unless names and shapes match. `step` is set by itself."""
        ...


def derive_key(seed: int, stream: int, step: Tensor, micro_batch: Tensor = 0, replica: Tensor = 0) -> Tensor:
    """Return the uint32[2] key of one micro-batch on one replica: the same on every backend, unrelated to any other's.

    Each argument in turn is mixed into the key by MurmurHash3's finaliser. Seeds may have 64 bits, the others 32.
    """
    key = _constant(0x6A09E667, 0xBB67AE85)
    for word in (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF, stream, step, micro_batch, replica):
        word = _constant(word) if isinstance(word, int) else ops.cast(word, "uint32")
        key = _mix(key + word * _constant(0x9E3779B9, 0x7FEB352D))
        # Each half depends on both.
        key = _mix(key + ops.flip(key) * _constant(0x846CA68B, 0xC2B2AE3D))
    return key


def _constant(*values: int) -> Tensor:
    return ops.convert_to_tensor(np.array(values, "uint32"))


def _mix(x: Tensor) -> Tensor:
    x = ops.bitwise_xor(x, ops.bitwise_right_shift(x, _constant(16))) * _constant(0x85EBCA6B)
    x = ops.bitwise_xor(x, ops.bitwise_right_shift(x, _constant(13))) * _constant(0xC2B2AE35)
    return ops.bitwise_xor(x, ops.bitwise_right_shift(x, _constant(16)))
