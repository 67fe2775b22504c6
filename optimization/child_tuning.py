"""Child-Tuning (Xu et al. 2021, arXiv 2109.05687): only a part of the network, the child, gets its gradient.

Both forms are applied after clipping and before the moments, as in the released code. Weight decay still reaches every
weight: with decay, weights outside the child shrink. Unlike the released D, the child has exactly the size asked for,
also where much of the Fisher information is 0.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ground.keys import finalised, words
from ground.tensors import ops

Tensor = Any
Gradients = Mapping[str, Tensor]


@dataclass(frozen=True)
class TaskFreeChild:
    """Form F: a new random child every step, gradients divided by its share so that their mean is unchanged.

    The draw of an element depends on (seed, variable's name, step, position) alone and is equal on every backend.

    Attributes:
        fraction: chance of each element to be in the child (the paper's p_F).
        seed: of the draws.
    """

    fraction: float
    seed: int

    def __call__(self, gradients: Gradients, step: Tensor) -> dict[str, Tensor]:
        """Return the masked gradients."""
        return {
            name: ops.where(self._child(name, gradient, step), gradient / self.fraction, 0.0)
            for name, gradient in gradients.items()
        }

    def _child(self, name: str, gradient: Tensor, step: Tensor) -> Tensor:
        key = finalised(words(zlib.crc32(name.encode())) + ops.cast(step, "uint32") * words(0x9E3779B9))
        for word in (self.seed & 0xFFFFFFFF, self.seed >> 32 & 0xFFFFFFFF):
            key = finalised(key + words(word) * words(0x7FEB352D) + words(0x3C6EF372))
        positions = ops.cast(ops.arange(int(np.prod(gradient.shape)), dtype="int32"), "uint32")
        bits = finalised(finalised(positions * words(0x846CA68B) + key) + key)
        # 24 bits are what float32 holds exactly.
        uniform = ops.cast(ops.bitwise_right_shift(bits, words(8)), "float32") * 2.0**-24
        return ops.reshape(uniform < self.fraction, gradient.shape)


class TaskDrivenChild:
    """Form D: one child for the whole run, chosen before the first step; gradients of the rest are 0."""

    def __init__(self) -> None:
        self._masks: dict[str, Tensor] | None = None

    def choose(self, masks: Mapping[str, np.ndarray]) -> None:
        """Set the child: booleans of each variable's shape; variables without a mask belong to it entirely."""
        self._masks = {name: ops.convert_to_tensor(mask, "bool") for name, mask in masks.items()}

    def __call__(self, gradients: Gradients, step: Tensor) -> dict[str, Tensor]:
        """Return the masked gradients."""
        if self._masks is None:
            raise RuntimeError("the child is not chosen yet")
        return {
            name: ops.where(self._masks[name], gradient, 0.0) if name in self._masks else gradient
            for name, gradient in gradients.items()
        }


def child_masks(fisher: Mapping[str, np.ndarray], fraction: float) -> dict[str, np.ndarray]:
    """Return the boolean masks of the `fraction` of all entries together with the largest Fisher information.

    Exactly round(fraction * entries) are True; of equal ones those that come first are taken.
    """
    values = np.concatenate([np.ravel(value) for value in fisher.values()])
    kept = round(fraction * values.size)
    if kept == 0:
        return {name: np.zeros(value.shape, bool) for name, value in fisher.items()}
    threshold = np.partition(values, values.size - kept)[values.size - kept]
    mask = values > threshold
    ties = np.flatnonzero(values == threshold)
    mask[ties[: kept - int(mask.sum())]] = True
    parts = np.split(mask, np.cumsum([value.size for value in fisher.values()])[:-1])
    return {name: part.reshape(value.shape) for part, (name, value) in zip(parts, fisher.items(), strict=True)}
