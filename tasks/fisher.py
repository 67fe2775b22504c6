"""Diagonal Fisher information of a task, by which Child-Tuning D chooses the weights to train (arXiv 2109.05687).

The paper squares the gradient of every example, without dropout; the released code squares that of every batch as
trained on, each variable's clipped. Both are empirical: labels are those of the data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import keras
import numpy as np

from ground.tensors import Tensor, ops
from modeling.differentiation import variable_gradients
from modeling.randomness import fold_in
from modeling.variables import named_variables
from tasks.losses import Terms


class TaskWithLosses(Protocol):
    """The part of `training.engine.Task` that a loss needs."""

    @property
    def loss_weights(self) -> Mapping[str, float]: ...

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]: ...


def fisher_information(
    task: TaskWithLosses,
    model: keras.Model,
    batches: Iterable[Mapping[str, np.ndarray]],
    names: Sequence[str],
    *,
    released: bool = False,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Return the mean over batches of the squared gradient of the task's loss, for the variables `names`.

    Args:
        task: the task.
        model: its model with the weights that training starts from.
        batches: for the paper's form, batches of one example each; for the released, those of one epoch of training.
        names: as in `modeling.named_variables`.
        released: with dropout and further losses as in training, each variable's gradient clipped to a norm of 1.
        seed: of the dropout masks.
    """
    variables = named_variables(model)

    def loss(batch: Mapping[str, Tensor], number: Tensor) -> Tensor:
        key = fold_in(np.array([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF], "uint32"), number)
        losses, _ = task.terms(model, batch, seed=key, training=released)
        weights, normalizers = task.loss_weights, task.normalizers(batch)
        return sum(
            (weights[name] * total / ops.maximum(normalizers[name], 1.0) for name, (total, _) in losses.items()),
            start=ops.zeros(()),
        )

    gradients_of = variable_gradients(loss, [variables[name] for name in names])
    sums: list[Tensor] | None = None
    count = 0
    for batch in batches:
        tensors = {name: ops.convert_to_tensor(value) for name, value in batch.items()}
        gradients = gradients_of(tensors, ops.convert_to_tensor(count, "int32"))
        squares = [ops.square(_clipped(part) if released else part) for part in gradients]
        sums = squares if sums is None else [old + new for old, new in zip(sums, squares, strict=True)]
        count += 1
    if sums is None:
        raise ValueError("no batches to measure the Fisher information on")
    return {name: ops.convert_to_numpy(total) / count for name, total in zip(names, sums, strict=True)}


def _clipped(gradient: Tensor) -> Tensor:
    # As torch.nn.utils.clip_grad_norm_ with max_norm 1 does.
    norm = ops.sqrt(ops.sum(ops.square(gradient)))
    return gradient * ops.minimum(1.0 / (norm + 1e-6), 1.0)
