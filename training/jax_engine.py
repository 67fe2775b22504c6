"""The engine on Keras's JAX backend: one compiled loop of pure steps with donated state, on any number of devices.

Same steps, names and numbers as `TensorFlowEngine`; dropout masks are drawn by JAX's generator from the same keys, so
they differ from TensorFlow's. On several devices, and on several hosts, the compiler partitions the whole step and
keeps its meaning: sums go over the global batch, clipping sees global gradients, masks do not depend on the mesh.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from ground.keys import seed_words
from ground.tensors import named_variables
from training.checkpoints import Pieces
from training.engine import Batch, Optimizer, Task, Tensor, check_divisible, check_state
from training.jax_step import Arrays, JaxStep, State
from training.loss_scaling import LossScaling
from training.placement import DATA, Placement, create_placement


class JaxEngine:
    """See `training.engine.Engine`.

    Args:
        task: what to train; its model is built here and is `model`.
        optimizer: gradients -> updates.
        seed: of all randomness in training.
        micro_batches: parts into which each batch is cut to save memory; the result is that of the whole batch.
        ema_decay: decay of the running average of the weights, with which `evaluate` and `predict` then work.
        steps_per_call: steps that one compiled call takes, at most; numbers do not depend on how many it does take.
        norm_steps: steps between norms of gradient and update by brick; 0 never computes them.
        loss_scaling: for a model that computes in float16.
        placement: devices, and the cuts of tensors over them; by default everything is on the first device.
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
        norm_steps: int = 0,
        loss_scaling: LossScaling | None = None,
        placement: Placement | None = None,
    ):
        self.placement = placement or create_placement(jax.devices()[:1])
        with _in_host_memory():
            self.model = task.build_model()
            companions = task.companions()
        self._task = task
        self._compiled = JaxStep(
            task,
            optimizer,
            self.model,
            self.placement,
            companions=companions,
            micro_batches=micro_batches,
            ema_decay=ema_decay,
            steps_per_call=steps_per_call,
            norm_steps=norm_steps,
            loss_scaling=loss_scaling,
        )
        # Between calls the variables hold the weights, so that a caller may read and set them.
        self._variables = self._compiled.variables
        self._begin(seed)

    def _begin(self, seed: int) -> None:
        """Set all that steps change, but the weights, to what it is at step 0."""
        self.step, self.seed, self.loss_limit = 0, seed, math.inf
        self._seed_words = seed_words(seed).astype("uint32")
        self._place_weights()
        self._slots = self._compiled.initial_slots(self._weights())
        shapes, _ = self._compiled.shapes()
        self._ema = {name: jnp.copy(self._variables[name].value) for name in shapes["ema"]}
        scaling = self._compiled.loss_scaling.init() if self._compiled.loss_scaling else {}
        self._scaling = {name: _placed(value, shapes["scaling"][name].sharding) for name, value in scaling.items()}

    def train(self, batches: Sequence[Batch]) -> list[dict[str, float]]:
        """Take one optimizer step a batch; raises `UsageError` for a batch that cannot be cut into micro-batches.

        A process gives only its rows of every batch: `placement.host_part`.
        """
        # A caller may have set weights since the last call; the new values can be on any device.
        self._place_weights()
        if self.step == 0:
            self._ema = {name: jnp.copy(self._variables[name].value) for name in self._ema}
        micro_batches, steps_per_call = self._compiled.micro_batches, self._compiled.steps_per_call
        results = []
        for _, equal in itertools.groupby(batches, _shapes):
            alike = list(equal)
            check_divisible(alike[0], micro_batches, self.placement.data_parts // self.placement.host_part[1])
            starts = range(0, len(alike), steps_per_call)
            results += [self._call(alike[first : first + steps_per_call]) for first in starts]
        of_step = self._compiled.results.of_step
        return [of_step(vector) for vectors, count in results for vector in np.asarray(vectors)[:count]]

    def _call(self, batches: list[Batch]) -> tuple[Tensor, int]:
        stacked = {name: self._stacked([batch[name] for batch in batches]) for name in batches[0]}
        numbers = self._seed_words, np.int32(self.step), np.int32(len(batches)), np.float32(self.loss_limit)
        state, vectors = self._compiled.train(self._state(), self._fixed(), stacked, *numbers)
        for name, value in state["trained"].items():
            self._variables[name].assign(value)
        self._slots, self._ema, self._scaling = state["slots"], state["ema"], state["scaling"]
        self.step += len(batches)
        return vectors, len(batches)

    def restart(self, task: Task, seed: int) -> None:
        """Go back to step 0 with another seed; see `training.engine.Engine`."""
        with _in_host_memory():
            initial = named_variables(task.build_model())
        for name, variable in self._variables.items():
            variable.assign(initial[name].value)
        self._begin(seed)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return `loss`, `NAME_loss` and the metrics over all batches; raises `ValueError` if there are none."""
        values = self._evaluated_values()
        parts = (
            np.asarray(self._compiled.evaluate(values, self._spread(batch), self._seed_words)) for batch in batches
        )
        return self._compiled.results.of_evaluation(parts, self._task.loss_weights)

    def predict(self, batches: Iterable[Batch]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the task's predictions batch by batch."""
        for batch in batches:
            predictions = self._compiled.predict(self._evaluated_values(), self._spread(batch))
            yield {name: np.asarray(value) for name, value in predictions.items()}

    @contextlib.contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """Inside, the model's variables hold what evaluations compute with: averages, where kept."""
        self._place_weights()
        former = {name: self._variables[name].value for name in self._ema} if self.step else {}
        for name in former:
            self._variables[name].assign(self._ema[name])
        try:
            yield
        finally:
            for name, value in former.items():
                self._variables[name].assign(value)

    def state(self, *, whole: bool = True) -> dict[str, Any]:
        """Return a copy of everything that a step changes, but the step number; all processes call it together.

        Unless `whole`, nothing is sent between processes: a cut tensor is the `Pieces` of this process.
        """
        return {name: _on_host(value, whole=whole) for name, value in self._named_state().items()}

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise `UsageError` naming the first tensor of `state` that is missing, unknown or misshapen."""
        check_state(state, self._named_state())

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Set all of `state()`; raises `UsageError` naming the first tensor that is missing, unknown or misshapen."""
        targets = self._named_state()
        check_state(state, targets)
        new = {name: _placed(state[name], x.sharding, x.dtype) for name, x in targets.items()}
        for name, variable in self._variables.items():
            variable.assign(new[f"model/{name}"])
        self._slots = {
            slot: {name: new[f"optimizer/{slot}/{name}"] for name in values} for slot, values in self._slots.items()
        }
        self._ema = {name: new[f"ema/{name}"] for name in self._ema}
        self._scaling = {name: new[f"optimizer/loss_scale/{name}"] for name in self._scaling}

    def _named_state(self) -> dict[str, Any]:
        state = {f"model/{name}": value for name, value in self._weights().items()}
        for slot, values in self._slots.items():
            state |= {f"optimizer/{slot}/{name}": value for name, value in values.items()}
        state |= {f"optimizer/loss_scale/{name}": value for name, value in self._scaling.items()}
        return state | {f"ema/{name}": value for name, value in self._ema.items()}

    def _state(self) -> State:
        trained = {name: self._variables[name].value for name in self._compiled.trained_names}
        return {"trained": trained, "slots": self._slots, "ema": self._ema, "scaling": self._scaling}

    def _fixed(self) -> Arrays:
        trained = set(self._compiled.trained_names)
        return {name: value for name, value in self._all_weights().items() if name not in trained}

    def _weights(self) -> Arrays:
        return {name: variable.value for name, variable in self._variables.items()}

    def _all_weights(self) -> Arrays:
        return {name: variable.value for name, variable in self._compiled.all_variables.items()}

    def _evaluated_values(self) -> Arrays:
        self._place_weights()
        return self._all_weights() | self._ema if self.step else self._all_weights()

    def _place_weights(self) -> None:
        for name, variable in self._compiled.all_variables.items():
            sharding = self._compiled.shardings[name]
            if variable.value.sharding != sharding:
                variable.assign(_placed(np.asarray(variable.value), sharding))

    def _stacked(self, values: list[np.ndarray]) -> jax.Array:
        """Return [steps_per_call, micro-batches, examples, ...] on the devices, with zeros for missing steps.

        A micro-batch takes every micro_batches-th row: contiguous rows would depend on the number of hosts.

            one host, 2 micro-batches:   rows 0 .. 7  ->  [[0 2 4 6], [1 3 5 7]]
            two hosts, 2 micro-batches:  rows 0 .. 3  ->  [[0 2], [1 3]] and rows 4 .. 7  ->  [[4 6], [5 7]]
        """
        size, *rest = values[0].shape
        micro_batches = self._compiled.micro_batches
        shape = (self._compiled.steps_per_call, micro_batches, size // micro_batches, *rest)
        stack = np.zeros(shape, values[0].dtype)
        for place, value in zip(stack, values, strict=False):
            place[...] = value.reshape(size // micro_batches, micro_batches, *rest).swapaxes(0, 1)
        _, hosts = self.placement.host_part
        return jax.make_array_from_process_local_data(
            self._compiled.batch_sharding, stack, (*shape[:2], shape[2] * hosts, *rest)
        )

    def _spread(self, batch: Batch) -> dict[str, jax.Array]:
        """Return a batch of evaluation on the devices: cut where its size allows, else whole on each."""
        size = len(next(iter(batch.values())))
        axes = () if size % self.placement.data_parts else (DATA,)
        return {name: _placed(value, self.placement.sharding(*axes)) for name, value in batch.items()}


def _in_host_memory() -> contextlib.AbstractContextManager[Any]:
    """Create weights in the memory of the host: the weights of a large model do not fit into one device."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        # JAX_PLATFORMS leaves the CPU out.
        return contextlib.nullcontext()


def _placed(value: Any, sharding: NamedSharding, dtype: Any = None) -> jax.Array:
    """Return a copy of `value`, a whole array or `StoredTensor` in every process, on the devices."""
    return jax.make_array_from_callback(tuple(value.shape), sharding, lambda index: np.array(value[index], dtype))


def _on_host(value: jax.Array, *, whole: bool) -> np.ndarray | Pieces:
    # A view would change with the next step, which reuses the donated buffer.
    if value.is_fully_addressable or value.is_fully_replicated:
        return np.array(value, copy=True)
    if whole:
        return np.asarray(multihost_utils.process_allgather(value, tiled=True))
    pieces = {
        tuple(cut.start or 0 for cut in shard.index): np.array(shard.data)
        for shard in value.addressable_shards
        if shard.replica_id == 0
    }
    return Pieces(value.shape, pieces)


def _shapes(batch: Batch) -> list[tuple[str, tuple[int, ...]]]:
    return sorted((name, value.shape) for name, value in batch.items())
