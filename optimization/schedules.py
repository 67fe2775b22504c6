"""Learning rate as a function of the step: BERT's and ALBERT's warmup with polynomial decay, and two plainer ones.

A step is the number of updates before this one, so the first update uses `schedule(0)`. Each schedule works on Python
numbers and on tensors, and returns a float32 scalar.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from absl.app import UsageError

from ground.tensors import ops

Tensor = Any
Schedule = Callable[[Any], Tensor]


def _warmup(rate: float, step: Tensor, start_step: int, warmup_steps: int, after: Tensor) -> Tensor:
    if not warmup_steps:
        return after
    done = step - start_step
    return ops.where(done < warmup_steps, rate * ops.maximum(done, 0.0) / warmup_steps, after)


@dataclass(frozen=True)
class PolynomialDecay:
    """`rate * (1 - step / total_steps)**power`, during the warmup `rate * (step - start) / warmup_steps` instead.

    As in BERT and ALBERT the decay counts from step 0, not from the end of the warmup, so the rate drops a little
    there. Before `start_warmup_step` the rate is 0 (google-research/albert lets it go negative).
    """

    rate: float
    total_steps: int
    warmup_steps: int = 0
    power: float = 1.0
    start_warmup_step: int = 0

    def __call__(self, step: Any) -> Tensor:
        """Return the rate of the update that follows `step` updates."""
        step = ops.cast(step, "float32")
        left = 1.0 - ops.minimum(step, float(self.total_steps)) / self.total_steps
        decayed = self.rate * (left if self.power == 1 else ops.power(left, self.power))
        return _warmup(self.rate, step, self.start_warmup_step, self.warmup_steps, decayed)


@dataclass(frozen=True)
class LinearDecay:
    """Linear warmup to `rate`, then a straight line that starts there and reaches 0 at `total_steps`."""

    rate: float
    total_steps: int
    warmup_steps: int = 0

    def __call__(self, step: Any) -> Tensor:
        """Return the rate of the update that follows `step` updates."""
        step = ops.cast(step, "float32")
        length = max(self.total_steps - self.warmup_steps, 1)
        decayed = self.rate * ops.maximum(self.total_steps - step, 0.0) / length
        return _warmup(self.rate, step, 0, self.warmup_steps, decayed)


@dataclass(frozen=True)
class Constant:
    """Linear warmup to `rate`, which then stays."""

    rate: float
    warmup_steps: int = 0

    def __call__(self, step: Any) -> Tensor:
        """Return the rate of the update that follows `step` updates."""
        step = ops.cast(step, "float32")
        return _warmup(self.rate, step, 0, self.warmup_steps, self.rate + 0.0 * step)


@dataclass(frozen=True)
class Start:
    """0 before `first_step`, `value` from then on: a variable that joins later (gradual unfreezing)."""

    value: float
    first_step: int

    def __call__(self, step: Any) -> Tensor:
        """Return the factor of the update that follows `step` updates."""
        return ops.where(ops.cast(step, "float32") >= self.first_step, self.value, 0.0)


SCHEDULES = ("polynomial", "linear", "constant")


def create_schedule(
    name: str,
    *,
    rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    power: float = 1.0,
    start_warmup_step: int = 0,
) -> Schedule:
    """Return the schedule `name`, one of `SCHEDULES`.

    Raises `UsageError` for another name, or for a warmup that does not end before the last step.
    """
    if name not in SCHEDULES:
        raise UsageError(f"unknown schedule {name!r}: expected one of {', '.join(SCHEDULES)}")
    if start_warmup_step + warmup_steps > total_steps:
        raise UsageError(
            f"the warmup ends at step {start_warmup_step + warmup_steps}, after the last step {total_steps}: "
            "lower num_warmup_steps or raise num_train_steps"
        )
    if name == "polynomial":
        return PolynomialDecay(rate, total_steps, warmup_steps, power, start_warmup_step)
    return LinearDecay(rate, total_steps, warmup_steps) if name == "linear" else Constant(rate, warmup_steps)
