"""A search without compilation, which would cost a test more than its steps do."""

from __future__ import annotations

from typing import Any

import numpy as np

from generation.tensorflow_executor import TensorFlowExecutor


class Eager(TensorFlowExecutor):
    """Steps one by one."""

    def __init__(self, model: Any, search: Any) -> None:
        super().__init__(model, search)
        self._start = model.start
        self._loop = self._eagerly

    def _eagerly(self, stop: Any, carry: Any, memory: Any, prepared: Any) -> Any:
        while int(carry[0]) < int(stop) and bool(np.any(carry[1]["open"])):
            carry = self.decoding.step(*carry, memory, prepared)
        return carry
