"""The engine on Keras's TensorFlow backend, on one device.

Differs from `model.fit` in what specs measured to be wrong there: embedding gradients are densified before they are
squared, counts and gradients are summed over all micro-batches before anything is divided or clipped, and there is no
random state: every mask follows from (seed, step, micro-batch, replica).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from training.engine import (
    EVALUATION_STREAM,
    TRAINING_STREAM,
    Batch,
    Optimizer,
    StepResults,
    Task,
    Tensor,
    check_divisible,
    check_state,
    derive_key,
    weights_by_name,
)


class TensorFlowEngine:
    """See `training.engine.Engine`.

    Args:
        task: what to train; its model is built here and is `model`.
        optimizer: gradients -> updates.
        seed: of all randomness in training.
        micro_batches: parts into which each batch is cut to save memory; the result is that of the whole batch.
        ema_decay: decay of the running average of the weights, with which `evaluate` and `predict` then work.
    """

    def __init__(
        self, task: Task, optimizer: Optimizer, *, seed: int, micro_batches: int = 1, ema_decay: float | None = None
    ):
        self.step, self.seed = 0, seed
        self.model = task.build_model()
        self._task, self._optimizer = task, optimizer
        self._micro_batches, self._ema_decay = micro_batches, 0.0 if ema_decay is None else ema_decay
        weights = weights_by_name(self.model)
        self._variables = {name: variable.value for name, variable in weights.items()}
        trainable = {name: self._variables[name] for name, variable in weights.items() if variable.trainable}
        self._trained = {name: trainable[name] for name in optimizer.trainable(trainable)}
        self._slots = {
            slot: {name: tf.Variable(value, trainable=False) for name, value in values.items()}
            for slot, values in optimizer.init(trainable).items()
        }
        self._ema = (
            {}
            if ema_decay is None
            else {name: tf.Variable(value, trainable=False) for name, value in self._trained.items()}
        )
        self._held: dict[str, Tensor] = {}
        self._results = StepResults()
        self._train_step = tf.function(self._replica_step, autograph=False)
        self._evaluate_step = tf.function(self._evaluation_sums, autograph=False)
        self._predict_step = tf.function(lambda batch: task.predictions(self.model, batch), autograph=False)

    def train(self, batches: Sequence[Batch]) -> list[dict[str, float]]:
        """Take one optimizer step a batch; raises `UsageError` for a batch that cannot be cut into micro-batches."""
        self._take_back_weights()
        if self.step == 0:
            for name, average in self._ema.items():
                average.assign(self._trained[name])
        results = []
        for batch in batches:
            check_divisible(batch, self._micro_batches)
            results.append(self._train_step(_tensors(batch), tf.constant(self.step, tf.int64)))
            self.step += 1
        return [self._results.of_step(result.numpy()) for result in results]

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return `loss`, `NAME_loss` and the metrics over all batches; raises `ValueError` if there are none."""
        with self._averaged_weights():
            parts = (self._evaluate_step(_tensors(batch)).numpy() for batch in batches)
            return self._results.of_evaluation(parts, self._task.loss_weights)

    def predict(self, batches: Iterable[Batch]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the task's predictions batch by batch."""
        for batch in batches:
            with self._averaged_weights():
                predictions = {name: value.numpy() for name, value in self._predict_step(_tensors(batch)).items()}
            yield predictions

    def state(self) -> dict[str, np.ndarray]:
        """Return a copy of everything that a step changes, but the step number; right even amid an evaluation."""
        return {name: value.numpy() for name, value in self._state(self._held).items()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Set all of `state()`; raises `UsageError` naming the first tensor that is missing, unknown or misshapen."""
        self._held = {}
        targets = self._state({})
        check_state(state, targets)
        for name, target in targets.items():
            target.assign(state[name])

    def _state(self, held: Mapping[str, Tensor]) -> dict[str, Any]:
        state: dict[str, Any] = {f"model/{name}": held.get(name, value) for name, value in self._variables.items()}
        for slot, values in self._slots.items():
            state |= {f"optimizer/{slot}/{name}": value for name, value in values.items()}
        return state | {f"ema/{name}": value for name, value in self._ema.items()}

    @contextlib.contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        if not self._ema or self.step == 0:
            yield
            return
        # Whatever interrupts from here on, `state` and `train` find the trained weights in `_held`.
        self._held = {name: tf.identity(value) for name, value in self._trained.items()}
        try:
            for name, value in self._trained.items():
                value.assign(self._ema[name])
            yield
        finally:
            self._take_back_weights()

    def _take_back_weights(self) -> None:
        for name, value in self._held.items():
            self._trained[name].assign(value)
        self._held = {}

    def _replica_step(self, batch: dict[str, Tensor], step: Tensor) -> Tensor:
        """One optimizer step; returns it as `StepResults` names it."""
        replica = 0
        normalizers = {name: tf.maximum(total, 1.0) for name, total in self._task.normalizers(batch).items()}
        without_gradient: set[str] = set()

        def micro_step(index: Tensor, part: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
            key = derive_key(self.seed, TRAINING_STREAM, step, index, replica)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(list(self._trained.values()))
                losses, metrics = self._task.terms(self.model, part, seed=key, training=True)
                weights = self._task.loss_weights
                loss = tf.add_n(
                    [weights[name] * total / normalizers[name] for name, (total, _) in losses.items() if weights[name]]
                )
            gradients = tape.gradient(loss, self._trained)
            without_gradient.update(name for name, gradient in gradients.items() if gradient is None)
            dense = [
                tf.zeros_like(self._trained[name]) if gradient is None else tf.convert_to_tensor(gradient)
                for name, gradient in gradients.items()
            ]
            return dense, loss, self._results.packed(losses, metrics)

        summed, loss, sums = _over_micro_batches(micro_step, batch, self._micro_batches)
        gradients = {
            name: gradient for name, gradient in zip(self._trained, summed, strict=True) if name not in without_gradient
        }
        old = {name: tf.convert_to_tensor(self._trained[name]) for name in gradients}
        old_slots = {
            slot: {name: tf.convert_to_tensor(values[name]) for name in gradients}
            for slot, values in self._slots.items()
        }
        new, new_slots, info = self._optimizer.update(gradients, old, old_slots, step)
        finite = tf.math.is_finite(loss) & tf.math.is_finite(info["gradient_norm"])

        def apply() -> Tensor:
            for name, value in new.items():
                self._trained[name].assign(value)
                for slot, values in new_slots.items():
                    self._slots[slot][name].assign(values[name])
            for name, average in self._ema.items():
                average.assign(self._ema_decay * average + (1 - self._ema_decay) * self._trained[name])
            return tf.constant(0.0)

        skipped = tf.cond(finite, apply, lambda: tf.constant(1.0))
        scalars = [loss, info["learning_rate"], info["gradient_norm"], skipped]
        return tf.concat([tf.stack(scalars), sums], axis=0)

    def _evaluation_sums(self, batch: dict[str, Tensor]) -> Tensor:
        key = derive_key(self.seed, EVALUATION_STREAM, 0)
        return self._results.packed(*self._task.terms(self.model, batch, seed=key, training=False))


def _over_micro_batches(
    micro_step: Callable[[Tensor, Mapping[str, Tensor]], tuple[list[Tensor], Tensor, Tensor]],
    batch: Mapping[str, Tensor],
    count: int,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the sums of what `micro_step` returns over `count` equal parts of the batch."""
    if count == 1:
        return micro_step(tf.constant(0), batch)
    # The first part stands outside of the loop, which tells the loop what to add up; the step is traced once for both.
    micro_step = tf.function(micro_step, autograph=False)
    parts = {name: tf.reshape(x, (count, x.shape[0] // count, *x.shape[1:])) for name, x in batch.items()}

    def body(index: Tensor, *totals: Tensor) -> tuple[Tensor, ...]:
        gradients, loss, sums = micro_step(index, {name: x[index] for name, x in parts.items()})
        return index + 1, *(total + more for total, more in zip(totals, [*gradients, loss, sums], strict=True))

    gradients, loss, sums = micro_step(tf.constant(0), {name: x[0] for name, x in parts.items()})
    _, *totals = tf.while_loop(
        lambda index, *_: index < count,
        body,
        (tf.constant(1), *gradients, loss, sums),
        parallel_iterations=1,
        maximum_iterations=count - 1,
    )
    return totals[:-2], totals[-2], totals[-1]


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {name: tf.convert_to_tensor(value) for name, value in batch.items()}
