"""Dynamic loss scaling for float16 (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2), the same on every engine.

The loss is multiplied by a power of two before gradients are taken, so that small ones survive float16, and the summed
gradients are divided by it before anything else sees them. Unlike Keras' LossScaleOptimizer the check is on the sum
over all replicas, and scale and count are part of the engine's state, so that a resumed run goes on exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ground.tensors import ops

Tensor = Any


@dataclass(frozen=True)
class LossScaling:
    """The scale halves after each step that is not finite and doubles after so many finite ones in a row.

    Attributes:
        initial: scale of the first step; the largest float16 is below 2^16.
        growth_steps: finite steps in a row after which the scale doubles.
        smallest: lower bound of the scale.
        largest: upper bound of the scale.
    """

    initial: float = 2.0**15
    growth_steps: int = 2000
    smallest: float = 1.0
    largest: float = 2.0**24

    def init(self) -> dict[str, np.ndarray]:
        """Return the state of step 0: `scale` and `finite_steps`, the finite steps since the scale last changed."""
        return {"scale": np.array(self.initial, "float32"), "finite_steps": np.array(0, "int32")}

    def update(self, state: Mapping[str, Tensor], finite: Tensor) -> dict[str, Tensor]:
        """Return the state after a step that was finite or not."""
        scale, finite_steps = state["scale"], state["finite_steps"] + 1
        grows = finite_steps >= self.growth_steps
        grown = ops.where(grows, ops.minimum(scale * 2.0, self.largest), scale)
        return {
            "scale": ops.where(finite, grown, ops.maximum(scale / 2.0, self.smallest)),
            "finite_steps": ops.where(ops.logical_or(grows, ops.logical_not(finite)), 0, finite_steps),
        }
