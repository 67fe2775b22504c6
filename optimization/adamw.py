"""AdamW as BERT and ALBERT use it (specs: no bias correction, epsilon outside the root, decay decoupled).

With `bias_correction` it is Loshchilov and Hutter's (arXiv 1711.05101, algorithm 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from ground.tensors import ops

Tensor = Any


@dataclass(frozen=True)
class AdamW:
    """`u = m / (sqrt(v) + epsilon) + weight_decay * w` with running means m of g and v of g * g."""

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-6
    bias_correction: bool = False
    slot_names: ClassVar[tuple[str, ...]] = ("m", "v")

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
        """Return the update and the new slots; `trust_ratio` is LAMB's and means nothing here."""
        m = self.beta_1 * slots["m"] + (1 - self.beta_1) * gradient
        v = self.beta_2 * slots["v"] + (1 - self.beta_2) * ops.square(gradient)
        m_hat, v_hat = m, v
        if self.bias_correction:
            t = ops.cast(step, "float32") + 1.0
            m_hat = m / (1 - ops.power(self.beta_1, t))
            v_hat = v / (1 - ops.power(self.beta_2, t))
        update = m_hat / (ops.sqrt(v_hat) + self.epsilon)
        if weight_decay:
            update += weight_decay * parameter
        return update, {"m": m, "v": v}
