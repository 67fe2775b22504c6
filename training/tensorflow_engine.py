"""The engine on Keras's TensorFlow backend, on one device or on the replicas of a `tf.distribute` strategy.

Unlike in `model.fit`, gradients of embeddings are dense before they are squared, counts and gradients are summed over
all micro-batches and replicas before anything is divided or clipped, and there is no random state: every mask follows
from (seed, step, micro-batch, replica).
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from ground.keys import derive_key, seed_words
from ground.tensors import named_variables
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
    loss_weights_at,
)
from training.loss_scaling import LossScaling


class TensorFlowEngine:
    """See `training.engine.Engine`.

    Under a strategy every replica computes its part of each batch; every process gives the whole batch.

    Args:
        task: what to train; its model is built here and is `model`.
        optimizer: gradients -> updates.
        seed: of all randomness in training.
        micro_batches: parts into which each batch is cut to save memory; the result is that of the whole batch.
        ema_decay: decay of the running average of the weights, with which `evaluate` and `predict` then work.
        steps_per_call: steps that one compiled call takes, at most; numbers do not depend on how many it does take.
        strategy: the devices; None is the default device of TensorFlow.
        loss_scaling: for a model that computes in float16.
        norm_steps: steps between norms of gradient and update by brick; 0 never computes them.
    """

    def __init__(
        self,
        task: Task,
        optimizer: Optimizer,
        *,
        seed: int,
        micro_batches: int = 1,
        ema_decay: float | None = None,
        steps_per_call: int = 1,
        strategy: tf.distribute.Strategy | None = None,
        loss_scaling: LossScaling | None = None,
        norm_steps: int = 0,
    ):
        self.step, self.seed, self.loss_limit = 0, seed, math.inf
        self._task, self._optimizer = task, optimizer
        self._micro_batches, self._ema_decay = micro_batches, 0.0 if ema_decay is None else ema_decay
        self._steps_per_call, self._strategy, self._loss_scaling = steps_per_call, strategy, loss_scaling
        self._replicas = 1 if strategy is None else strategy.num_replicas_in_sync
        with contextlib.nullcontext() if strategy is None else strategy.scope():
            self._create_variables(with_average=ema_decay is not None)
        self._held: dict[str, Tensor] = {}
        further = ["loss_scale"] if loss_scaling else []
        self._results = StepResults(task, self._trained, further, norm_steps=norm_steps)
        self._train_step = tf.function(self._step if steps_per_call == 1 else self._steps, autograph=False)
        self._evaluate_step = tf.function(self._evaluation, autograph=False)
        self._predict_step = tf.function(self._prediction, autograph=False)

    def _create_variables(self, *, with_average: bool) -> None:
        self.model = self._task.build_model()
        # The task keeps and calls them; the scope around this gives every replica a copy of their weights.
        self._task.companions()
        weights = named_variables(self.model)
        self._variables = {name: variable.value for name, variable in weights.items()}
        trainable = {name: self._variables[name] for name, variable in weights.items() if variable.trainable}
        self._trained = {name: trainable[name] for name in self._optimizer.trainable(trainable)}
        self._slots = {
            slot: {name: tf.Variable(value, trainable=False) for name, value in values.items()}
            for slot, values in self._optimizer.init(trainable).items()
        }
        averaged = self._trained if with_average else {}
        self._ema = {name: tf.Variable(value, trainable=False) for name, value in averaged.items()}
        self._loss_limit = tf.Variable(tf.constant(math.inf), trainable=False)
        self._seed_words = tf.Variable(tf.constant(seed_words(self.seed)), trainable=False)
        scaling = self._loss_scaling.init() if self._loss_scaling else {}
        self._scaling = {name: tf.Variable(tf.constant(value), trainable=False) for name, value in scaling.items()}

    def train(self, batches: Sequence[Batch]) -> list[dict[str, float]]:
        """Take one optimizer step a batch; raises `UsageError` for a batch that cannot be cut into micro-batches."""
        self._take_back_weights()
        if self.step == 0:
            for name, average in self._ema.items():
                average.assign(self._trained[name])
        self._loss_limit.assign(self.loss_limit)
        results = []
        for _, equal in itertools.groupby(batches, _shapes):
            alike = list(equal)
            check_divisible(alike[0], self._micro_batches, self._replicas)
            starts = range(0, len(alike), self._steps_per_call)
            results += [self._call(alike[first : first + self._steps_per_call]) for first in starts]
        return [self._results.of_step(vector) for vectors, count in results for vector in _rows(vectors, count)]

    def _call(self, batches: list[Batch]) -> tuple[Tensor, int]:
        """Take up to `steps_per_call` steps; return their vectors, perhaps with further rows, and their number."""
        count, first_step = len(batches), tf.constant(self.step, tf.int64)
        if self._steps_per_call == 1:
            vectors = self._train_step(self._spread(batches[0]), first_step)
        else:
            # Padded to one shape: each number of steps would be traced and compiled anew.
            stack = {name: np.stack([batch[name] for batch in batches]) for name in batches[0]}
            missing = self._steps_per_call - count
            stack = {name: np.pad(x, [(0, missing), *[(0, 0)] * (x.ndim - 1)]) for name, x in stack.items()}
            vectors = self._train_step(self._spread(stack, axis=1), first_step, tf.constant(count))
        self.step += count
        return vectors, count

    def restart(self, task: Task, seed: int) -> None:
        """Go back to step 0 with another seed; see `training.engine.Engine`."""
        initial = named_variables(task.build_model())
        weights = {name: variable.value for name, variable in initial.items()}
        trainable = {name: weights[name] for name, variable in initial.items() if variable.trainable}
        state: dict[str, Any] = {f"model/{name}": value for name, value in weights.items()}
        for slot, values in self._optimizer.init(trainable).items():
            state |= {f"optimizer/{slot}/{name}": value for name, value in values.items()}
        scaling = self._loss_scaling.init() if self._loss_scaling else {}
        state |= {f"optimizer/loss_scale/{name}": value for name, value in scaling.items()}
        # The first step sets them.
        state |= {f"ema/{name}": weights[name] for name in self._ema}
        self.load_state(state)
        self.step, self.seed, self.loss_limit = 0, seed, math.inf
        self._seed_words.assign(seed_words(seed))

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return `loss`, `NAME_loss` and the metrics over all batches; raises `ValueError` if there are none."""
        with self._averaged_weights():
            parts = (self._evaluate_step(*self._evaluated(batch)).numpy() for batch in batches)
            return self._results.of_evaluation(parts, self._task.loss_weights)

    def predict(self, batches: Iterable[Batch]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the task's predictions batch by batch."""
        for batch in batches:
            with self._averaged_weights():
                predictions = self._predict_step(*self._evaluated(batch))
            yield {name: value.numpy() for name, value in predictions.items()}

    def evaluated_weights(self) -> contextlib.AbstractContextManager[None]:
        """Return a scope in which the model's variables hold what evaluations compute with: averages, where kept."""
        return self._averaged_weights()

    def state(self, *, whole: bool = True) -> dict[str, np.ndarray]:
        """Return a copy of everything that a step changes, but the step number, also during an evaluation.

        It is always whole: the strategies of `training/strategies.py` cut no variable.
        """
        return {name: value.numpy() for name, value in self._state(self._held).items()}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise `UsageError` naming the first tensor of `state` that is missing, unknown or misshapen."""
        check_state(state, self._state({}))

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Set all of `state()`; raises `UsageError` naming the first tensor that is missing, unknown or misshapen."""
        self._held = {}
        targets = self._state({})
        check_state(state, targets)
        for name, target in targets.items():
            target.assign(np.asarray(state[name]))

    def _state(self, held: Mapping[str, Tensor]) -> dict[str, Any]:
        state: dict[str, Any] = {f"model/{name}": held.get(name, value) for name, value in self._variables.items()}
        for slot, values in self._slots.items():
            state |= {f"optimizer/{slot}/{name}": value for name, value in values.items()}
        state |= {f"optimizer/loss_scale/{name}": value for name, value in self._scaling.items()}
        return state | {f"ema/{name}": value for name, value in self._ema.items()}

    @contextlib.contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        if not self._ema or self.step == 0:
            yield
            return
        # If anything interrupts the evaluation, `state` and `train` find the trained weights in `_held`.
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

    def _spread(self, batch: Batch, axis: int = 0) -> dict[str, Tensor]:
        """Return the batch as tensors; under a strategy, to every replica its part of the examples."""
        if self._strategy is None:
            return _tensors(batch)
        part = next(iter(batch.values())).shape[axis] // self._replicas

        def part_of(context: tf.distribute.ValueContext) -> dict[str, Tensor]:
            first = context.replica_id_in_sync_group * part
            rows = (*[slice(None)] * axis, slice(first, first + part))
            return _tensors({name: x[rows] for name, x in batch.items()})

        return self._strategy.experimental_distribute_values_from_function(part_of)

    def _evaluated(self, batch: Batch) -> tuple[dict[str, Tensor], bool]:
        """Return a batch of evaluation and whether it is cut; where it cannot be, every replica gets the whole."""
        if self._strategy is None or len(next(iter(batch.values()))) % self._replicas:
            return _tensors(batch), False
        return self._spread(batch), True

    def _on_replicas(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function that returns the same on every replica."""
        strategy = self._strategy
        if strategy is None:
            return function(*arguments)
        results = strategy.run(function, args=arguments)
        return tf.nest.map_structure(lambda x: strategy.experimental_local_results(x)[0], results)

    def _summed(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Return the sums over all replicas, on each of them."""
        if self._strategy is None:
            return list(values)
        return list(_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, list(values)))

    def _step(self, batch: dict[str, Tensor], step: Tensor) -> Tensor:
        return self._on_replicas(self._replica_step, batch, step)

    def _steps(self, batches: dict[str, Tensor], first_step: Tensor, count: Tensor) -> Tensor:
        """Take `count` of the stacked steps; return a row for each, then undefined rows."""
        if isinstance(self._strategy, tf.distribute.TPUStrategy):
            return self._on_replicas(self._loop_of_replica, batches, first_step, count)

        # MirroredStrategy replicas are threads that synchronise in `all_reduce`; that deadlocks inside a per-replica
        # while loop, so the loop is outside.
        def together(*arguments: Any) -> Tensor:
            return self._on_replicas(self._one_of_steps, *arguments)

        return _loop(together, self._steps_per_call, batches, first_step, count)

    def _loop_of_replica(self, batches: dict[str, Tensor], first_step: Tensor, count: Tensor) -> Tensor:
        return _loop(self._one_of_steps, self._steps_per_call, batches, first_step, count)

    def _one_of_steps(self, batches: dict[str, Tensor], first_step: Tensor, index: Tensor) -> Tensor:
        batch = {name: x[index] for name, x in batches.items()}
        return self._replica_step(batch, first_step + tf.cast(index, first_step.dtype))

    def _replica_step(self, batch: dict[str, Tensor], step: Tensor) -> Tensor:
        """Take one optimizer step; return the vector of `StepResults`."""
        replica = 0 if self._strategy is None else _replica_context().replica_id_in_sync_group
        counts = self._task.normalizers(batch)
        totals = self._summed(list(counts.values()))
        normalizers = {name: tf.maximum(total, 1.0) for name, total in zip(counts, totals, strict=True)}
        scaling = {name: tf.convert_to_tensor(value) for name, value in self._scaling.items()}
        without_gradient: set[str] = set()

        def micro_step(index: Tensor, part: Mapping[str, Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
            key = derive_key(self._seed_words, TRAINING_STREAM, step, index, replica)
            with tf.GradientTape(watch_accessed_variables=False) as tape:
                tape.watch(list(self._trained.values()))
                losses, metrics = self._task.terms(self.model, part, seed=key, training=True)
                sums = self._results.packed(losses, metrics)
                weights = loss_weights_at(self._task, step)
                counted = [(name, total) for name, (total, _) in losses.items() if name in weights]
                loss = tf.add_n([weights[name] * total / normalizers[name] for name, total in counted])
                scaled = loss * scaling["scale"] if scaling else loss
            gradients = tape.gradient(scaled, self._trained)
            without_gradient.update(name for name, gradient in gradients.items() if gradient is None)
            dense = [
                tf.zeros_like(self._trained[name]) if gradient is None else tf.convert_to_tensor(gradient)
                for name, gradient in gradients.items()
            ]
            return dense, loss, sums

        summed, loss, sums = _over_micro_batches(micro_step, batch, self._micro_batches)
        *summed, loss, sums = self._summed([*summed, loss, sums])
        if scaling:
            summed = [gradient / scaling["scale"] for gradient in summed]
        gradients = {
            name: gradient for name, gradient in zip(self._trained, summed, strict=True) if name not in without_gradient
        }
        old = {name: tf.convert_to_tensor(self._trained[name]) for name in gradients}
        old_slots = {
            slot: {name: tf.convert_to_tensor(values[name]) for name in gradients if name in values}
            for slot, values in self._slots.items()
        }
        new, new_slots, info = self._optimizer.update(gradients, old, old_slots, step)
        finite = tf.math.is_finite(loss) & tf.math.is_finite(info["gradient_norm"])
        norms = self._results.norms(gradients, old, new, step)

        taken = finite & (loss <= self._loss_limit)
        skipped = tf.cond(taken, lambda: self._applied(new, new_slots), lambda: tf.constant(1.0))
        scalars = [loss, info["learning_rate"], info["gradient_norm"], skipped]
        if self._loss_scaling:
            for name, value in self._loss_scaling.update(scaling, finite).items():
                _own(self._scaling[name]).assign(value)
            scalars.append(scaling["scale"])
        return tf.concat([tf.stack(scalars), *norms, sums], axis=0)

    def _applied(self, new: Mapping[str, Tensor], new_slots: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        """Assign the results of an update to the copies of this replica; return 0: the step was not skipped."""
        for name, value in new.items():
            _own(self._trained[name]).assign(value)
            for slot, values in new_slots.items():
                if name in values:
                    _own(self._slots[slot][name]).assign(values[name])
        for name, average in self._ema.items():
            average = _own(average)
            average.assign(self._ema_decay * average + (1 - self._ema_decay) * _own(self._trained[name]))
        return tf.constant(0.0)

    def _evaluation(self, batch: dict[str, Tensor], in_parts: bool) -> Tensor:
        return self._on_replicas(self._summed_evaluation_sums if in_parts else self._evaluation_sums, batch)

    def _summed_evaluation_sums(self, batch: dict[str, Tensor]) -> Tensor:
        return self._summed([self._evaluation_sums(batch)])[0]

    def _evaluation_sums(self, batch: dict[str, Tensor]) -> Tensor:
        key = derive_key(self._seed_words, EVALUATION_STREAM, 0)
        return self._results.packed(*self._task.terms(self.model, batch, seed=key, training=False))

    def _prediction(self, batch: dict[str, Tensor], in_parts: bool) -> dict[str, Tensor]:
        return self._on_replicas(self._gathered_predictions if in_parts else self._predictions, batch)

    def _gathered_predictions(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return _replica_context().all_gather(self._predictions(batch), axis=0)

    def _predictions(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return self._task.predictions(self.model, batch)


def _replica_context() -> tf.distribute.ReplicaContext:
    context = tf.distribute.get_replica_context()
    assert context is not None
    return context


def _own(variable: tf.Variable) -> tf.Variable:
    """Return this replica's copy of a variable.

    All replicas compute the same new value, so each assigns its own copy; an assignment to the variable itself would
    synchronise the replicas once more. Replicas of a TPU are one program in which the variable is its own copy.
    """
    strategy = tf.distribute.get_strategy()
    if isinstance(strategy, tf.distribute.TPUStrategy) or not isinstance(variable, tf.distribute.DistributedValues):
        return variable
    copies = strategy.experimental_local_results(variable)
    # Replicas are numbered over all processes, each of which has equally many.
    return copies[tf.get_static_value(_replica_context().replica_id_in_sync_group) % len(copies)]


def _loop(
    step: Callable[..., Tensor], size: int, batches: dict[str, Tensor], first_step: Tensor, count: Tensor
) -> Tensor:
    """Return the vectors of `count` calls of `step`, stacked with undefined ones up to `size`."""

    def body(index: Tensor, vectors: tf.TensorArray) -> tuple[Tensor, tf.TensorArray]:
        return index + 1, vectors.write(index, step(batches, first_step, index))

    start = tf.constant(0), tf.TensorArray(tf.float32, size)
    return tf.while_loop(lambda index, _: index < count, body, start, parallel_iterations=1)[1].stack()


def _over_micro_batches(
    micro_step: Callable[[Tensor, Mapping[str, Tensor]], tuple[list[Tensor], Tensor, Tensor]],
    batch: Mapping[str, Tensor],
    count: int,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the sums of what `micro_step` returns over `count` equal parts of the batch."""
    if count == 1:
        return micro_step(tf.constant(0), batch)
    # The first part is outside of the loop and gives it the shapes of its sums; `tf.function` traces the step once.
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


def _rows(vectors: Tensor, count: int) -> np.ndarray:
    return np.atleast_2d(vectors.numpy())[:count]


def _shapes(batch: Batch) -> list[tuple[str, tuple[int, ...]]]:
    return sorted((name, value.shape) for name, value in batch.items())


def _tensors(batch: Batch) -> dict[str, Tensor]:
    return {name: tf.convert_to_tensor(value) for name, value in batch.items()}
