"""The train step on JAX as a pure function: (state, fixed weights, batches, step number) -> (state, results).

It knows names, shapes and shardings of variables, never their values. So the step of `JaxEngine` can be compiled ahead
of time, for devices of another machine, from a model whose variables are only declared (`modeling.variables.declared`).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding

from ground.keys import derive_key
from ground.tensors import named_variables
from training.engine import (
    EVALUATION_STREAM,
    TRAINING_STREAM,
    Optimizer,
    StepResults,
    Task,
    Tensor,
    layout_rules_of,
    loss_weights_at,
    stacks_of,
)
from training.loss_scaling import LossScaling
from training.placement import DATA, Placement

Arrays = dict[str, Any]
State = dict[str, Any]
"""The tensors that a step changes: `trained` and `ema` by name, `slots` by slot and name, and `scaling`."""

_GATHERED = "gathered"


class JaxStep:
    """The compiled functions of a run; all are pure, and `train` may be lowered from shapes alone.

    Args:
        task: what to train.
        optimizer: gradients -> updates.
        model: the task's; its variables need no values here.
        placement: the devices, and the cuts of weights and batches over them.
        companions: the task's; their weights are fixed arguments of every program.
        micro_batches: parts into which each batch is cut to save memory; the result is that of the whole batch.
        ema_decay: decay of the running average of the weights; None keeps none.
        steps_per_call: steps that one call of `train` takes, at most.
        norm_steps: steps between norms of gradient and update by brick; 0 never computes them.
        loss_scaling: for a model that computes in float16.

    Attributes:
        train: (state, fixed, batches, seed, first step, count, loss limit) -> (state, results [steps_per_call, ...]),
            compiled when first called. `fixed` are the weights that are not trained, by name, the companions' among
            them; batches are [steps_per_call, micro_batches, examples, ...] each; the seed, of all randomness, is
            `ground.keys.seed_words` as uint32[2]; the state is donated; results are those that `StepResults` names.
        evaluate: (values of `all_variables`, batch, seed) -> sums, as `StepResults` names them.
        predict: (values of `all_variables`, batch) -> the task's predictions.
        variables: the model's, by name.
        all_variables: `variables` and those of companions, as `companion:COMPANION/NAME`.
        shardings: the cuts between steps of each of `all_variables`.
    """

    def __init__(
        self,
        task: Task,
        optimizer: Optimizer,
        model: keras.Model,
        placement: Placement,
        *,
        companions: Mapping[str, keras.Model] | None = None,
        micro_batches: int = 1,
        ema_decay: float | None = None,
        steps_per_call: int = 1,
        norm_steps: int = 0,
        loss_scaling: LossScaling | None = None,
    ):
        self.model, self.placement = model, placement
        self.micro_batches, self.steps_per_call = micro_batches, steps_per_call
        self.loss_scaling = loss_scaling
        self.variables = named_variables(model)
        self._task, self._optimizer, self._ema_decay = task, optimizer, ema_decay
        self._models = {"": model} | {f"companion:{name}/": x for name, x in (companions or {}).items()}
        self.all_variables: dict[str, keras.Variable] = {}
        self._computed: dict[str, NamedSharding] = {}
        self._compute_dtypes: dict[str, str] = {}
        for prefix, each in self._models.items():
            variables = named_variables(each)
            shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
            computed = placement.computed(shapes, layout_rules_of(each))
            self.all_variables |= {prefix + name: variable for name, variable in variables.items()}
            self._computed |= {prefix + name: sharding for name, sharding in computed.items()}
            self._compute_dtypes |= dict.fromkeys((prefix + name for name in variables), each.compute_dtype)
        self.shardings = {
            name: placement.stored(tuple(variable.shape), self._computed[name])
            for name, variable in self.all_variables.items()
        }
        self._late = self._gather_late() if placement.fsdp else frozenset()
        self.trainable_names = [name for name, variable in self.variables.items() if variable.trainable]
        self.trained_names = optimizer.trainable(self.trainable_names)
        further = ["loss_scale"] if loss_scaling else []
        self.results = StepResults(task, self.trained_names, further, norm_steps=norm_steps)
        self._connected: dict[tuple[str, ...], list[str]] = {}
        state, everywhere = jax.tree.map(lambda x: x.sharding, self.shapes()[0]), placement.sharding()
        self.train = jax.jit(self._steps, donate_argnums=0, out_shardings=(state, everywhere))
        self.evaluate = jax.jit(self._evaluation_sums, out_shardings=everywhere)
        self.predict = jax.jit(self._predictions, out_shardings=everywhere)

    @property
    def batch_sharding(self) -> NamedSharding:
        """The sharding of batches [steps, micro-batches, examples, ...]."""
        return self.placement.sharding(None, None, DATA)

    def shapes(self) -> tuple[State, Arrays]:
        """Return the state and the fixed weights as `jax.ShapeDtypeStruct`s with their shardings."""
        weights = {
            name: jax.ShapeDtypeStruct(variable.shape, variable.dtype, sharding=self.shardings[name])
            for name, variable in self.all_variables.items()
        }
        slots = jax.eval_shape(self._optimizer.init, {name: weights[name] for name in self.trainable_names})
        placed = {
            slot: {
                name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=self.shardings[name])
                for name, value in values.items()
            }
            for slot, values in slots.items()
        }
        trained = {name: weights[name] for name in self.trained_names}
        fixed = {name: weight for name, weight in weights.items() if name not in trained}
        ema = {} if self._ema_decay is None else dict(trained)
        scaling = {
            name: jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=self.placement.sharding())
            for name, value in (self.loss_scaling.init() if self.loss_scaling else {}).items()
        }
        return {"trained": trained, "slots": placed, "ema": ema, "scaling": scaling}, fixed

    def initial_slots(self, weights: Arrays) -> dict[str, Arrays]:
        """Return the optimizer's slots at step 0, on the devices."""
        places = jax.tree.map(lambda x: x.sharding, self.shapes()[0]["slots"])
        trainable = {name: weights[name] for name in self.trainable_names}
        return jax.jit(self._optimizer.init, out_shardings=places)(trainable)

    def arguments(self, batch: Mapping[str, Any]) -> tuple[State, Arrays, Arrays, Any, Any, Any, Any]:
        """Return shapes and shardings of the arguments of `train` for batches like `batch`, features [B, ...]."""
        state, fixed = self.shapes()
        batches = {}
        for name, feature in batch.items():
            size, *rest = feature.shape
            shape = (self.steps_per_call, self.micro_batches, size // self.micro_batches, *rest)
            batches[name] = jax.ShapeDtypeStruct(shape, feature.dtype, sharding=self.batch_sharding)
        seed = jax.ShapeDtypeStruct((2,), np.uint32, sharding=self.placement.sharding())
        number = jax.ShapeDtypeStruct((), np.int32, sharding=self.placement.sharding())
        limit = jax.ShapeDtypeStruct((), np.float32, sharding=self.placement.sharding())
        return state, fixed, batches, seed, number, number, limit

    def lower(self, batch: Mapping[str, Any]) -> jax.stages.Lowered:
        """Lower `train` from shapes alone; `.compile()` then gives the program for the devices of the mesh.

        The program reports its memory, cost and text; `batch` is as in `arguments`.
        """
        return self.train.lower(*self.arguments(batch))

    def _steps(
        self,
        state: State,
        fixed: Arrays,
        batches: Mapping[str, Tensor],
        seed: Tensor,
        first_step: Tensor,
        count: Tensor,
        loss_limit: Tensor,
    ) -> tuple[State, Tensor]:
        """Take `count` steps.

        The count is an argument: with a constant, every number of steps would be a program of its own, with other bits.
        """
        first = {name: stack[0] for name, stack in batches.items()}
        connected = self._connected_names(state["trained"], fixed, {name: x[0] for name, x in first.items()})
        vectors = jnp.zeros((self.steps_per_call, self.results.size), "float32")

        def body(index: Tensor, carried: tuple[State, Tensor]) -> tuple[State, Tensor]:
            state, vectors = carried
            batch = {name: lax.dynamic_index_in_dim(x, index, keepdims=False) for name, x in batches.items()}
            state, vector = self._one_step(state, fixed, batch, seed, first_step + index, connected, loss_limit)
            return state, lax.dynamic_update_index_in_dim(vectors, vector, index, 0)

        return lax.fori_loop(0, count, body, (state, vectors))

    def _one_step(
        self,
        state: State,
        fixed: Arrays,
        parts: Mapping[str, Tensor],
        seed: Tensor,
        step: Tensor,
        connected: list[str],
        loss_limit: Tensor,
    ) -> tuple[State, Tensor]:
        trained, slots, ema, scaling = state["trained"], state["slots"], state["ema"], state["scaling"]
        counts = lax.map(self._task.normalizers, dict(parts))
        normalizers = {name: jnp.maximum(jnp.sum(count), 1.0) for name, count in counts.items()}
        old = {name: trained[name] for name in connected}

        def micro_step(index: Tensor, part: Mapping[str, Tensor]) -> Any:
            key = derive_key(seed, TRAINING_STREAM, step, index)
            values = trained | fixed

            def loss(old: Arrays) -> tuple[Tensor, tuple[Tensor, Tensor]]:
                value, sums = self._loss(self._gathered(values | old), part, key, normalizers, step)
                return value * scaling["scale"] if scaling else value, (value, sums)

            if self.placement.fsdp and not self._recomputes:
                # Save activations but not the gathered weights; re-gather them in the backward pass. Not with --remat:
                # those blocks gather for themselves, and this policy would keep their inner activations.
                policy = jax.checkpoint_policies.save_anything_except_these_names(_GATHERED)
                loss = jax.checkpoint(loss, policy=policy)
            (_, (value, sums)), gradients = jax.value_and_grad(loss, has_aux=True)(old)
            return self._scattered(gradients), value, sums

        gradients, loss, sums = _over_stacked_parts(micro_step, parts, self.micro_batches)
        if scaling:
            gradients = {name: gradient / scaling["scale"] for name, gradient in gradients.items()}
        old_slots = {
            slot: {name: values[name] for name in connected if name in values} for slot, values in slots.items()
        }
        new, new_slots, info = self._optimizer.update(gradients, old, old_slots, step)
        norms = self.results.norms(gradients, old, new, step)
        finite = jnp.isfinite(loss) & jnp.isfinite(info["gradient_norm"])
        taken = finite & (loss <= loss_limit)

        def chosen(new: Tensor, old: Tensor) -> Tensor:
            return jnp.where(taken, new, old)

        trained = trained | jax.tree.map(chosen, new, old)
        slots = {
            slot: values | {name: chosen(value, values[name]) for name, value in new_slots[slot].items()}
            for slot, values in slots.items()
        }
        decay = self._ema_decay or 0.0
        ema = {name: chosen(decay * average + (1 - decay) * trained[name], average) for name, average in ema.items()}
        scalars = [loss, info["learning_rate"], info["gradient_norm"], 1.0 - taken]
        if self.loss_scaling:
            scalars.append(scaling["scale"])
            scaling = self.loss_scaling.update(scaling, finite)
        vector = jnp.concatenate([jnp.stack([jnp.asarray(x, "float32") for x in scalars]), *norms, sums])
        return {"trained": trained, "slots": slots, "ema": ema, "scaling": scaling}, vector

    def _gathered(self, values: Arrays) -> Arrays:
        """Return the weights as they are computed with, where FSDP keeps only parts."""
        if not self.placement.fsdp:
            return values
        return {name: value if name in self._late else self._whole(name, value) for name, value in values.items()}

    def _gather_late(self) -> frozenset[str]:
        """Let stacks of blocks that are recomputed or looped over gather their own weights; return their names."""
        names = {id(variable): name for name, variable in self.all_variables.items()}
        stacks = [stack for model in self._models.values() for stack in stacks_of(model) if stack.remat or stack.scan]
        late = frozenset(names[id(variable)] for stack in stacks for variable in stack.own_weights)

        def gather(variable: keras.Variable, value: Tensor) -> Tensor:
            name = names[id(variable)]
            if name not in late:
                return value

            @jax.custom_vjp
            def whole(value: Tensor) -> Tensor:
                return self._whole(name, value)

            # The gradient is cut into parts at once; else the loop would keep one whole gradient per block.
            whole.defvjp(
                lambda value: (self._whole(name, value), None),
                lambda _, gradient: (lax.with_sharding_constraint(gradient, self.shardings[name]),),
            )
            return whole(value)

        for stack in stacks:
            stack.gather = gather
        return late

    @property
    def _recomputes(self) -> bool:
        late = any(name in self._late for name in self.variables)
        return late and any(stack.remat for stack in stacks_of(self.model))

    def _whole(self, name: str, value: Tensor) -> Tensor:
        if self.shardings[name] == self._computed[name]:
            return value
        # Cast before the gather: half the bytes to send, and no float32 copy to keep. Every matrix is cast anyway.
        value = lax.convert_element_type(value, self._compute_dtypes[name])
        return checkpoint_name(lax.with_sharding_constraint(value, self._computed[name]), _GATHERED)

    def _scattered(self, gradients: Arrays) -> Arrays:
        if not self.placement.fsdp:
            return gradients
        return {name: lax.with_sharding_constraint(x, self.shardings[name]) for name, x in gradients.items()}

    def _loss(
        self,
        values: Arrays,
        batch: Mapping[str, Tensor],
        key: Tensor,
        normalizers: Mapping[str, Tensor],
        step: Tensor,
    ) -> tuple[Tensor, Tensor]:
        losses, metrics = self._terms(values, batch, key, training=True)
        sums = self.results.packed(losses, metrics)
        weights = loss_weights_at(self._task, step)
        parts = [weights[name] * total / normalizers[name] for name, (total, _) in losses.items() if name in weights]
        return functools.reduce(jnp.add, parts), sums

    def _terms(self, values: Arrays, batch: Mapping[str, Tensor], key: Tensor, *, training: bool) -> Any:
        with self._with_values(values):
            return self._task.terms(self.model, batch, seed=key, training=training)

    def _with_values(self, values: Arrays) -> keras.StatelessScope:
        return keras.StatelessScope(state_mapping=[(self.all_variables[name], value) for name, value in values.items()])

    def _connected_names(self, trained: Arrays, fixed: Arrays, batch: Mapping[str, Tensor]) -> list[str]:
        """Return the trained variables that the loss depends on: JAX calls the gradient of the others zero, not none.

        In the traced gradient theirs are the outputs that are computed from nothing.
        """
        features = tuple(sorted(batch))
        if features not in self._connected:
            key = derive_key(0, TRAINING_STREAM, 0)
            ones = dict.fromkeys(self._task.loss_weights, 1.0)

            def loss(trained: Arrays, fixed: Arrays, batch: Mapping[str, Tensor]) -> Tensor:
                return self._loss(trained | fixed, batch, key, ones, jnp.int32(0))[0]

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

    def _evaluation_sums(self, values: Arrays, batch: Mapping[str, Tensor], seed: Tensor) -> Tensor:
        key = derive_key(seed, EVALUATION_STREAM, 0)
        return self.results.packed(*self._terms(self._gathered(values), batch, key, training=False))

    def _predictions(self, values: Arrays, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        with self._with_values(self._gathered(values)):
            return self._task.predictions(self.model, batch)


def _over_stacked_parts(micro_step: Any, parts: Mapping[str, Tensor], count: int) -> Any:
    """Return the sums of what `micro_step` returns over the parts, which are stacked on the leading axis."""
    if count == 1:
        return micro_step(jnp.int32(0), {name: x[0] for name, x in parts.items()})

    def body(totals: Any, numbered: tuple[Tensor, Mapping[str, Tensor]]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, totals, micro_step(*numbered)), None

    numbered = jnp.arange(count), dict(parts)
    shapes = jax.eval_shape(micro_step, *jax.tree.map(lambda x: x[0], numbered))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes)
    return lax.scan(body, zeros, numbered)[0]
