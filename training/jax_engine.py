"""The engine on Keras's JAX backend: one compiled loop of pure steps with donated state, on one device or several.

Same steps, names and numbers as `TensorFlowEngine`; dropout masks are drawn by JAX's generator from the same keys, so
they differ from TensorFlow's. Under a `keras.distribution` the whole step is partitioned by the compiler, which keeps
its meaning: sums go over the global batch, clipping sees global gradients, masks do not depend on the mesh.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

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

Arrays = dict[str, jax.Array]
State = dict[str, Any]
"""What a step changes: `trained`, `slots` by slot, and `ema`."""


class JaxEngine:
    """See `training.engine.Engine`.

    Create it inside the `keras.distribution` that it is to compute under, if any.

    Args:
        task: what to train; its model is built here and is `model`.
        optimizer: gradients -> updates.
        seed: of all randomness in training.
        micro_batches: parts into which each batch is cut to save memory; the result is that of the whole batch.
        ema_decay: decay of the running average of the weights, with which `evaluate` and `predict` then work.
        steps_per_call: steps that one compiled call takes, at most; numbers do not depend on how many it does take.
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
    ):
        self.step, self.seed = 0, seed
        self.model = task.build_model()
        self._task, self._optimizer = task, optimizer
        self._micro_batches, self._ema_decay = micro_batches, 0.0 if ema_decay is None else ema_decay
        self._steps_per_call = steps_per_call
        # The variables hold the weights between calls, so that anyone may read and set them there.
        self._variables = weights_by_name(self.model)
        trainable = {name: variable.value for name, variable in self._variables.items() if variable.trainable}
        self._trained_names = optimizer.trainable(trainable)
        self._slots = {
            slot: {name: _placed_like(trainable[name], value) for name, value in values.items()}
            for slot, values in optimizer.init(trainable).items()
        }
        self._ema = {} if ema_decay is None else {name: jnp.copy(trainable[name]) for name in self._trained_names}
        self._distribution: Any = keras.distribution.distribution()
        self._results = StepResults()
        self._connected: dict[tuple[str, ...], list[str]] = {}
        state_shardings = jax.tree.map(lambda x: x.sharding, self._state())
        everywhere = self._sharding(PartitionSpec())
        self._train_steps = jax.jit(
            self._steps, donate_argnums=0, out_shardings=(state_shardings, everywhere) if everywhere else None
        )
        self._evaluate_step = jax.jit(self._evaluation_sums, out_shardings=everywhere)
        self._predict_step = jax.jit(self._predictions, out_shardings=everywhere)

    def train(self, batches: Sequence[Batch]) -> list[dict[str, float]]:
        """Take one optimizer step a batch; raises `UsageError` for a batch that cannot be cut into micro-batches."""
        if self.step == 0:
            self._ema = {name: jnp.copy(self._variables[name].value) for name in self._ema}
        results = []
        for _, equal in itertools.groupby(batches, _shapes):
            alike = list(equal)
            check_divisible(alike[0], self._micro_batches, self._replicas)
            starts = range(0, len(alike), self._steps_per_call)
            results += [self._call(alike[first : first + self._steps_per_call]) for first in starts]
        return [self._results.of_step(vector) for vectors in results for vector in np.asarray(vectors)]

    def _call(self, batches: list[Batch]) -> Tensor:
        stacked = {name: self._stacked([batch[name] for batch in batches]) for name in batches[0]}
        state, vectors = self._train_steps(
            self._state(), self._fixed(), stacked, np.int32(self.step), np.int32(len(batches))
        )
        for name, value in state["trained"].items():
            self._variables[name].assign(value)
        self._slots, self._ema = state["slots"], state["ema"]
        self.step += len(batches)
        return vectors[: len(batches)]

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return `loss`, `NAME_loss` and the metrics over all batches; raises `ValueError` if there are none."""
        values = self._evaluated_values()
        parts = (np.asarray(self._evaluate_step(values, self._spread(batch))) for batch in batches)
        return self._results.of_evaluation(parts, self._task.loss_weights)

    def predict(self, batches: Iterable[Batch]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the task's predictions batch by batch."""
        for batch in batches:
            predictions = self._predict_step(self._evaluated_values(), self._spread(batch))
            yield {name: np.asarray(value) for name, value in predictions.items()}

    def state(self) -> dict[str, np.ndarray]:
        """Return a copy of everything that a step changes, but the step number."""
        # A view of a donated buffer would change under its holder.
        return {name: np.array(value, copy=True) for name, value in self._named_state().items()}

    def load_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Set all of `state()`; raises `UsageError` naming the first tensor that is missing, unknown or misshapen."""
        targets = self._named_state()
        check_state(state, targets)
        new = {name: _placed_like(target, state[name]) for name, target in targets.items()}
        for name, variable in self._variables.items():
            variable.assign(new[f"model/{name}"])
        self._slots = {
            slot: {name: new[f"optimizer/{slot}/{name}"] for name in values} for slot, values in self._slots.items()
        }
        self._ema = {name: new[f"ema/{name}"] for name in self._ema}

    def _named_state(self) -> dict[str, Any]:
        state = {f"model/{name}": variable.value for name, variable in self._variables.items()}
        for slot, values in self._slots.items():
            state |= {f"optimizer/{slot}/{name}": value for name, value in values.items()}
        return state | {f"ema/{name}": value for name, value in self._ema.items()}

    def _state(self) -> State:
        trained = {name: self._variables[name].value for name in self._trained_names}
        return {"trained": trained, "slots": self._slots, "ema": self._ema}

    def _fixed(self) -> Arrays:
        trained = set(self._trained_names)
        return {name: variable.value for name, variable in self._variables.items() if name not in trained}

    def _evaluated_values(self) -> Arrays:
        values = {name: variable.value for name, variable in self._variables.items()}
        return values | self._ema if self.step else values

    @property
    def _replicas(self) -> int:
        mesh = self._distribution and self._distribution.device_mesh
        return mesh.shape[mesh.axis_names.index(self._distribution.batch_dim_name)] if mesh else 1

    def _sharding(self, spec: PartitionSpec) -> NamedSharding | None:
        return NamedSharding(self._distribution.device_mesh.backend_mesh, spec) if self._distribution else None

    def _stacked(self, values: list[np.ndarray]) -> Any:
        """Return [steps_per_call, micro-batches, examples, ...], on the devices; steps beyond those given are 0."""
        size, *rest = values[0].shape
        stack = np.zeros(
            (self._steps_per_call, self._micro_batches, size // self._micro_batches, *rest), values[0].dtype
        )
        for place, value in zip(stack, values, strict=False):
            place[...] = value.reshape(place.shape)
        if not self._distribution:
            return stack
        sharding = self._sharding(PartitionSpec(None, None, self._distribution.batch_dim_name))
        return jax.device_put(stack, sharding)

    def _spread(self, batch: Batch) -> dict[str, Any]:
        """Return a batch of evaluation on the devices: in parts where it can be cut, else whole on each."""
        if not self._distribution:
            return dict(batch)
        size = len(next(iter(batch.values())))
        axis = None if size % self._replicas else self._distribution.batch_dim_name
        return jax.device_put(dict(batch), self._sharding(PartitionSpec(axis)))

    def _steps(
        self, state: State, fixed: Arrays, batches: Mapping[str, Tensor], first_step: Tensor, count: Tensor
    ) -> tuple[State, Tensor]:
        """Take `count` steps; returns the state and the steps' vectors, named by `StepResults`.

        The count is an argument, not a constant: one program for any number of steps gives each step the same bits.
        """
        first = {name: stack[0] for name, stack in batches.items()}
        connected = self._connected_names(state["trained"], fixed, {name: x[0] for name, x in first.items()})
        terms = len(self._results.loss_names) + len(self._results.metric_names)
        vectors = jnp.zeros((self._steps_per_call, len(StepResults.SCALARS) + 2 * terms), "float32")

        def body(index: Tensor, carried: tuple[State, Tensor]) -> tuple[State, Tensor]:
            state, vectors = carried
            batch = {name: lax.dynamic_index_in_dim(x, index, keepdims=False) for name, x in batches.items()}
            state, vector = self._one_step(state, fixed, batch, first_step + index, connected)
            return state, lax.dynamic_update_index_in_dim(vectors, vector, index, 0)

        return lax.fori_loop(0, count, body, (state, vectors))

    def _one_step(
        self, state: State, fixed: Arrays, parts: Mapping[str, Tensor], step: Tensor, connected: list[str]
    ) -> tuple[State, Tensor]:
        trained, slots, ema = state["trained"], state["slots"], state["ema"]
        counts = lax.map(self._task.normalizers, dict(parts))
        normalizers = {name: jnp.maximum(jnp.sum(count), 1.0) for name, count in counts.items()}
        old = {name: trained[name] for name in connected}

        def micro_step(index: Tensor, part: Mapping[str, Tensor]) -> Any:
            key = derive_key(self.seed, TRAINING_STREAM, step, index)
            values = trained | fixed
            (loss, sums), gradients = jax.value_and_grad(
                lambda old: self._loss(values | old, part, key, normalizers), has_aux=True
            )(old)
            return gradients, loss, sums

        gradients, loss, sums = _over_micro_batches(micro_step, parts, self._micro_batches)
        old_slots = {slot: {name: values[name] for name in connected} for slot, values in slots.items()}
        new, new_slots, info = self._optimizer.update(gradients, old, old_slots, step)
        finite = jnp.isfinite(loss) & jnp.isfinite(info["gradient_norm"])

        def chosen(new: Tensor, old: Tensor) -> Tensor:
            return jnp.where(finite, new, old)

        trained = trained | jax.tree.map(chosen, new, old)
        slots = {
            slot: values | {name: chosen(new_slots[slot][name], values[name]) for name in connected}
            for slot, values in slots.items()
        }
        decay = self._ema_decay
        ema = {name: chosen(decay * average + (1 - decay) * trained[name], average) for name, average in ema.items()}
        scalars = [loss, info["learning_rate"], info["gradient_norm"], 1.0 - finite]
        vector = jnp.concatenate([jnp.stack([jnp.asarray(x, "float32") for x in scalars]), sums])
        return {"trained": trained, "slots": slots, "ema": ema}, vector

    def _loss(
        self, values: Arrays, batch: Mapping[str, Tensor], key: Tensor, normalizers: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        losses, metrics = self._terms(values, batch, key, training=True)
        weights = self._task.loss_weights
        parts = [weights[name] * total / normalizers[name] for name, (total, _) in losses.items() if weights[name]]
        return functools.reduce(jnp.add, parts), self._results.packed(losses, metrics)

    def _terms(self, values: Arrays, batch: Mapping[str, Tensor], key: Tensor, *, training: bool) -> Any:
        with self._with_values(values):
            return self._task.terms(self.model, batch, seed=key, training=training)

    def _with_values(self, values: Arrays) -> keras.StatelessScope:
        return keras.StatelessScope(state_mapping=[(self._variables[name], value) for name, value in values.items()])

    def _connected_names(self, trained: Arrays, fixed: Arrays, batch: Mapping[str, Tensor]) -> list[str]:
        """Return the trained variables that the loss depends on: JAX calls the gradient of the others zero, not none.

        In the traced gradient theirs are the outputs that are computed from nothing.
        """
        features = tuple(sorted(batch))
        if features not in self._connected:
            key = derive_key(self.seed, TRAINING_STREAM, 0)
            ones = dict.fromkeys(self._task.loss_weights, 1.0)

            def loss(trained: Arrays, fixed: Arrays, batch: Mapping[str, Tensor]) -> Tensor:
                return self._loss(trained | fixed, batch, key, ones)[0]

            traced = jax.make_jaxpr(jax.grad(loss))(trained, fixed, dict(batch)).jaxpr
            known = {*traced.invars, *traced.constvars}
            for equation in traced.eqns:
                if any(not hasattr(x, "val") and x in known for x in equation.invars):
                    known.update(equation.outvars)
            reached = [not hasattr(x, "val") and x in known for x in traced.outvars]
            # As JAX orders the outputs: sorted by name.
            found = set(itertools.compress(sorted(trained), reached))
            self._connected[features] = [name for name in trained if name in found]
        return self._connected[features]

    def _evaluation_sums(self, values: Arrays, batch: Mapping[str, Tensor]) -> Tensor:
        key = derive_key(self.seed, EVALUATION_STREAM, 0)
        return self._results.packed(*self._terms(values, batch, key, training=False))

    def _predictions(self, values: Arrays, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with self._with_values(values):
            return self._task.predictions(self.model, batch)


def _over_micro_batches(micro_step: Any, parts: Mapping[str, Tensor], count: int) -> Any:
    """Return the sums of what `micro_step` returns over the parts, which are stacked on the leading axis."""
    if count == 1:
        return micro_step(jnp.int32(0), {name: x[0] for name, x in parts.items()})

    def body(totals: Any, numbered: tuple[Tensor, Mapping[str, Tensor]]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, totals, micro_step(*numbered)), None

    numbered = jnp.arange(count), dict(parts)
    shapes = jax.eval_shape(micro_step, *jax.tree.map(lambda x: x[0], numbered))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return lax.scan(body, zeros, numbered)[0]


def _placed_like(target: jax.Array, value: Any) -> jax.Array:
    """Return a copy of `value` in the data type and on the devices of `target`."""
    return jax.device_put(np.array(value, target.dtype), target.sharding)


def _shapes(batch: Batch) -> list[tuple[str, tuple[int, ...]]]:
    return sorted((name, value.shape) for name, value in batch.items())
