"""The protocols that the loop and the engines are written against: Task, Model, Optimizer, Dataset, Engine."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import keras
import numpy as np
from absl.app import UsageError

from ground.tensors import ops

Tensor = Any
Terms = dict[str, tuple[Tensor, Tensor]]
"""name -> (weighted sum, weight); the mean is taken only after summing over micro-batches, replicas and batches."""
Batch = Mapping[str, np.ndarray]
"""Features; the leading axis of each is examples."""
Slots = dict[str, dict[str, Tensor]]
LayoutRules = Sequence[tuple[str, tuple[str | None, ...]]]
"""(expression over variable names, axes of the mesh by which the leading axes are cut); the first match counts."""

TRAINING_STREAM = 1
EVALUATION_STREAM = 2


class Task(Protocol):
    """Losses, metrics and predictions of a model.

    `normalizers`, `terms` and `predictions` are traced: no side effects, no data-dependent Python.
    """

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """Weight of every loss term by its name."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of all metrics; `terms` may leave out some of the losses and metrics, for batches without them."""
        ...

    def build_model(self) -> keras.Model:
        """Return a new, built model."""
        ...

    def companions(self) -> Mapping[str, keras.Model]:
        """Return further new, built models that `terms` and `predictions` call: a teacher, a frozen copy.

        An engine calls this once, after `build_model`, and places their weights like fixed ones. It never trains,
        averages or saves them.
        """
        ...

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weight of each loss term, from the batch alone; weights of parts add up to the whole's."""
        ...

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        """Return losses and metrics; all randomness comes from `seed`, a uint32[2] key."""
        ...

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the predictions for each example by name; leading axis: examples."""
        ...


def loss_weights_at(task: Task, step: Tensor) -> dict[str, Tensor | float]:
    """Return the weight of every loss at a step, counted from 0; called while a step is traced.

    A task may have `loss_schedules`: functions of the step by the name of a loss, by which its weight is multiplied in
    training. Evaluations weigh every loss as in the first step, so that their numbers are of one kind. A loss whose
    weight is 0 throughout is left out.
    """
    schedules: Mapping[str, Callable[[Tensor], Tensor]] = getattr(task, "loss_schedules", {})
    weights = {name: weight for name, weight in task.loss_weights.items() if weight}
    return {name: weight * schedules[name](step) if name in schedules else weight for name, weight in weights.items()}


class Stack(Protocol):
    """Blocks of a model that are run one after the other, so that one block at a time needs its weights whole."""

    remat: bool
    """Recompute activations in the backward pass."""
    scan: bool
    """Compile one block and loop it over the weights of all."""
    gather: Callable[[keras.Variable, Tensor], Tensor] | None
    """Set by an engine that keeps weights in parts: (variable, part) -> the whole weight. The stack calls it for every
    block inside of the recomputation or the loop."""

    @property
    def own_weights(self) -> Sequence[keras.Variable]:
        """Weights that one block alone uses."""
        ...


class Model(Protocol):
    """The attributes by which a `keras.Model` tells an engine how to distribute it."""

    @property
    def layout_rules(self) -> LayoutRules:
        """Axes of the mesh over which each variable is cut; the first expression that fits a name decides."""
        ...

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The stacks of blocks, which may gather their own weights."""
        ...


def layout_rules_of(model: keras.Model) -> LayoutRules | None:
    """Return the `layout_rules` of a `Model`; None for a model without any, which cannot be cut."""
    return getattr(model, "layout_rules", None)


def stacks_of(model: keras.Model) -> tuple[Stack, ...]:
    """Return the `stacks` of a `Model`; none for a model without any, whose weights are all gathered at once."""
    return getattr(model, "stacks", ())


class Optimizer(Protocol):
    """Gradients -> updates, as in `optimization.Optimizer`."""

    def trainable(self, names: Iterable[str]) -> list[str]:
        """Return the names of the variables to train, in order."""
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
    loss_limit: float
    """A step whose loss exceeds this limit is skipped; infinite by default. It holds for the calls after it is set."""

    def train(self, batches: Sequence[Batch]) -> list[dict[str, float]]:
        """Take one optimizer step a batch; return `loss`, `NAME_loss`, the metrics, `learning_rate`, `gradient_norm`.

        `skipped` is 1 for a step whose loss or gradient was not finite, or whose loss exceeded `loss_limit`; such a
        step changed nothing but the step number. A term whose weight is 0 is left out. With loss scaling, `loss_scale`
        is the scale of the step. Every `norm_steps` there are `gradient_norm/BRICK` (before clipping) and
        `update_norm/BRICK`.
        """
        ...

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Return `loss`, `NAME_loss` and the metrics over all batches: sums first, then one division."""
        ...

    def predict(self, batches: Iterable[Batch]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the task's predictions batch by batch."""
        ...

    def restart(self, task: Task, seed: int) -> None:
        """Go back to step 0 with the seed and the initial weights of `task`, whose computation is that of the present.

        What is compiled stays: tracing and compiling cost more than a short run. The numbers that follow are bit for
        bit those of a new engine.
        """
        ...

    def evaluated_weights(self) -> AbstractContextManager[None]:
        """Return a scope in which the model's variables hold what evaluations compute with: averages, where kept."""
        ...

    def state(self, *, whole: bool = True) -> dict[str, Any]:
        """Return `model/NAME`, `optimizer/SLOT/NAME` and, with averaging, `ema/NAME`; all processes call it together.

        Unless `whole`, a tensor that is cut over processes is given as the `training.checkpoints.Pieces` of this
        process. With loss scaling there are `optimizer/loss_scale/scale` and `optimizer/loss_scale/finite_steps` too.
        """
        ...

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise `UsageError` unless `load_state` could set `state`: names and shapes match."""
        ...

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Set all of `state()`, but for `step`; raises `UsageError` unless names and shapes match.

        A tensor is an array or a `training.checkpoints.StoredTensor`.
        """
        ...


def brick_of(name: str) -> str:
    """Return the brick that a variable belongs to: the folders of its name, the first three at most."""
    return "/".join(name.split("/")[:-1][:3])


def is_norm_of_brick(name: str) -> bool:
    """Whether a value of a step is the norm of one brick's gradient or update; there are many."""
    return name.startswith(("gradient_norm/", "update_norm/"))


class StepResults:
    """The numbers of a step as one float32 vector, so that one transfer brings them to the host.

    The vector is `scalars`, norms by brick, then sum and weight of every term that the task declares. A program that is
    traced for other features gives a vector of the same names: absent norms are NaN, absent terms have weight 0.

    Args:
        task: declares the names of the terms.
        trained_names: variables that are trained; their bricks have norms.
        further_scalars: names of numbers that an engine adds to `SCALARS`.
        norm_steps: steps between norms of gradient and update by brick; 0 never computes them.
    """

    SCALARS = ("loss", "learning_rate", "gradient_norm", "skipped")

    def __init__(
        self, task: Task, trained_names: Iterable[str], further_scalars: Sequence[str] = (), *, norm_steps: int = 0
    ):
        self.scalars = (*self.SCALARS, *further_scalars)
        self.loss_names, self.metric_names = tuple(task.loss_weights), tuple(task.metrics)
        bricks = sorted({brick_of(name) for name in trained_names}) if norm_steps else ()
        self.norm_names = [f"{kind}/{brick}" for kind in ("gradient_norm", "update_norm") for brick in bricks]
        self._norm_steps = norm_steps

    def packed(self, losses: Terms, metrics: Terms) -> Tensor:
        """Return sum and weight of every declared term, float32 [2 * terms]; called while a step is traced.

        Raises `ValueError` for a term that the task does not declare.
        """
        pairs = []
        for where, names, terms in (
            ("loss_weights", self.loss_names, losses),
            ("metrics", self.metric_names, metrics),
        ):
            for name in terms:
                if name not in names:
                    raise ValueError(f"the task returned the term {name!r}; its {where} declare {', '.join(names)}")
            pairs += [terms.get(name, (0.0, 0.0)) for name in names]
        return ops.stack([ops.cast(value, "float32") for pair in pairs for value in pair])

    def norms(
        self, gradients: Mapping[str, Tensor], old: Mapping[str, Tensor], new: Mapping[str, Tensor], step: Tensor
    ) -> list[Tensor]:
        """Return [float32 norms], NaN in steps that are not due, or []; called while a step is traced.

        Args:
            gradients: by name, summed over replicas and not clipped.
            old: variables before the update.
            new: variables after it.
            step: counts from 0.
        """
        if not self._norm_steps:
            return []

        def computed() -> Tensor:
            squares: dict[str, list[Tensor]] = {name: [] for name in self.norm_names}
            for name, gradient in gradients.items():
                update = ops.cast(new[name], "float32") - ops.cast(old[name], "float32")
                for kind, value in (("gradient_norm", gradient), ("update_norm", update)):
                    squares[f"{kind}/{brick_of(name)}"].append(ops.sum(ops.square(ops.cast(value, "float32"))))
            missing = ops.convert_to_tensor(np.nan, "float32")
            return ops.stack([ops.sqrt(sum(parts)) if parts else missing for parts in squares.values()])

        due = ops.equal((step + 1) % self._norm_steps, 0)
        return [ops.cond(due, computed, lambda: ops.full((len(self.norm_names),), np.nan, "float32"))]

    @property
    def size(self) -> int:
        """Length of the vector of a training step."""
        return len(self.scalars) + len(self.norm_names) + 2 * (len(self.loss_names) + len(self.metric_names))

    def means(self, sums: np.ndarray) -> dict[str, float]:
        """Return sum / weight of every term that has weight."""
        names = [*(f"{name}_loss" for name in self.loss_names), *self.metric_names]
        pairs = zip(names, sums[0::2], sums[1::2], strict=True)
        return {name: float(total / weight) for name, total, weight in pairs if weight > 0}

    def of_step(self, vector: np.ndarray) -> dict[str, float]:
        """Return a training step's values by name."""
        names = [*self.scalars, *self.norm_names]
        values = dict(zip(names, map(float, vector), strict=False))
        given = {name: x for name, x in values.items() if name in self.scalars or not np.isnan(x)}
        return {"loss": given.pop("loss"), **self.means(vector[len(names) :].astype(np.float64)), **given}

    def of_evaluation(self, parts: Iterable[np.ndarray], loss_weights: Mapping[str, float]) -> dict[str, float]:
        """Return an evaluation's values from the vectors of its batches; raises `ValueError` if there are none."""
        sums = None
        for part in parts:
            sums = part.astype(np.float64) if sums is None else sums + part
        if sums is None:
            raise ValueError("no batches to evaluate on")
        means = self.means(sums)
        return {"loss": sum(loss_weights[name] * means.get(f"{name}_loss", 0.0) for name in self.loss_names), **means}


def check_state(state: Mapping[str, Any], targets: Mapping[str, Any]) -> None:
    """Raise `UsageError` naming the first tensor that is missing, unknown or misshapen."""
    for name in [*targets, *state]:
        got = tuple(state[name].shape) if name in state else None
        expected = tuple(targets[name].shape) if name in targets else None
        if got != expected:
            raise UsageError(
                f"the state does not fit this run: {name} is {_shape_text(got)}, expected {_shape_text(expected)}; "
                "use the flags of the run that wrote it, or another --output_dir"
            )


def check_divisible(batch: Batch, micro_batches: int, replicas: int = 1) -> None:
    """Raise `UsageError` for a batch that cannot be cut into equal micro-batches on every replica."""
    size = len(next(iter(batch.values())))
    if size % micro_batches:
        raise UsageError(
            f"a batch of {size} examples cannot be cut into {micro_batches} equal micro-batches: "
            "choose a number that divides the batch size"
        )
    if size % (micro_batches * replicas):
        raise UsageError(
            f"a batch of {size} examples cannot be cut into {micro_batches} equal micro-batches on each of "
            f"{replicas} devices: choose a batch size that {micro_batches * replicas} divides"
        )


def _shape_text(shape: tuple[int, ...] | None) -> str:
    return "absent" if shape is None else str(list(shape))
