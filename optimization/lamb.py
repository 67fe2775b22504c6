"""LAMB (You et al., arXiv 1904.00962, algorithm 2): AdamW's update, scaled per variable to the norm of the variable.

The three published forms differ in bias correction and in which variables are scaled and decayed; the table in
`optimization/__init__.py` names them. Unlike `keras.optimizers.Lamb`, decay lies inside the ratio, as in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ground.tensors import ops
from optimization.adamw import AdamW

Tensor = Any


@dataclass(frozen=True)
class LAMB(AdamW):
    """`u * |w| / |u|` with AdamW's u; the ratio is 1 where either norm is 0. The ratio is not clipped."""

    def __call__(
        self,
        gradient: Tensor,
        parameter: Tensor,
        slots: Mapping[str, Tensor],
        step: Tensor,
        *,
        weight_decay: float,
        trust_ratio: bool,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the update, scaled if `trust_ratio`, and the new slots."""
        update, new_slots = super().__call__(
            gradient, parameter, slots, step, weight_decay=weight_decay, trust_ratio=trust_ratio
        )
        if trust_ratio:
            parameter_norm = ops.sqrt(ops.sum(ops.square(parameter)))
            update_norm = ops.sqrt(ops.sum(ops.square(update)))
            both = ops.logical_and(parameter_norm > 0, update_norm > 0)
            update *= ops.where(both, parameter_norm / ops.where(both, update_norm, 1.0), 1.0)
        return update, new_slots
