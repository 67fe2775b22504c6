"""Functions of the gradients that are applied before the rule; each works on all gradients, by variable name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ground.tensors import ops

Tensor = Any
Gradients = Mapping[str, Tensor]
Transform = Callable[[Gradients, Tensor], Gradients]
"""(gradients, step) -> gradients; must keep names and shapes, and derive any randomness from the step."""


def global_norm(gradients: Gradients) -> Tensor:
    """Return the Euclidean norm of all gradients together, a float32 scalar."""
    return ops.sqrt(sum(ops.sum(ops.square(ops.cast(gradient, "float32"))) for gradient in gradients.values()))


def clip_by_global_norm(gradients: Gradients, clip_norm: float) -> tuple[dict[str, Tensor], Tensor]:
    """Scale all gradients together so that their global norm is at most `clip_norm`; also return the norm before."""
    norm = global_norm(gradients)
    scale = clip_norm / ops.maximum(norm, clip_norm)
    return {name: gradient * scale for name, gradient in gradients.items()}, norm
