"""Gradients -> updates: optimizers by name, schedules, and per-variable behaviour; pure functions over `keras.ops`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from absl.app import UsageError

from optimization.adamw import AdamW
from optimization.child_tuning import TaskDrivenChild, TaskFreeChild, child_masks
from optimization.lamb import LAMB
from optimization.optimizer import Optimizer, Rule, Slots
from optimization.pruning import Cubic, PrunedOptimizer, Structured, Unstructured
from optimization.schedules import SCHEDULES, Constant, LinearDecay, PolynomialDecay, Schedule, Start, create_schedule
from optimization.selection import Selection
from optimization.transforms import Transform

__all__ = [
    "LAMB",
    "OPTIMIZERS",
    "SCHEDULES",
    "AdamW",
    "Constant",
    "Cubic",
    "LinearDecay",
    "Optimizer",
    "PolynomialDecay",
    "PrunedOptimizer",
    "Rule",
    "Schedule",
    "Selection",
    "Slots",
    "Start",
    "Structured",
    "TaskDrivenChild",
    "TaskFreeChild",
    "Transform",
    "Unstructured",
    "child_masks",
    "create_optimizer",
    "create_schedule",
]

NORMS_AND_BIASES = "LayerNorm|layer_norm|bias"


@dataclass(frozen=True)
class Behaviour:
    """The choices of one named optimizer: its rule, and the variables without decay and without trust ratio."""

    rule: type[AdamW]
    bias_correction: bool
    not_decayed: str | None
    not_scaled: str | None


OPTIMIZERS = {
    # BERT's and ALBERT's AdamW.
    "adamw": Behaviour(AdamW, bias_correction=False, not_decayed=NORMS_AND_BIASES, not_scaled=None),
    # google-research/albert.
    "lamb": Behaviour(LAMB, bias_correction=False, not_decayed=NORMS_AND_BIASES, not_scaled=NORMS_AND_BIASES),
    # You et al., algorithm 2.
    "lamb_paper": Behaviour(LAMB, bias_correction=True, not_decayed=None, not_scaled=None),
    # brightmart/albert_zh.
    "lamb_albert_zh": Behaviour(LAMB, bias_correction=False, not_decayed=NORMS_AND_BIASES, not_scaled=None),
}


def create_optimizer(
    name: str,
    schedule: Schedule,
    *,
    weight_decay: float = 0.01,
    clip_norm: float | None = 1.0,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-6,
    bias_correction: bool | None = None,
    learning_rate_multipliers: Sequence[tuple[str, float | Schedule]] = (),
    frozen: Sequence[str] = (),
    transforms: Sequence[Transform] = (),
    transforms_after_clipping: Sequence[Transform] = (),
    around: Sequence[Callable[[Any], Any]] = (),
) -> Any:
    """Return the optimizer `name`, one of `OPTIMIZERS`; raises `UsageError` for another name.

    `bias_correction=None` means the name's own. `learning_rate_multipliers` are (expression, factor or schedule), first
    match first, 1 elsewhere; `frozen` are expressions over variable names, each of which must match one. Each of
    `around` makes of a `training.engine.Optimizer` one that does something besides, such as pruning.
    """
    if name not in OPTIMIZERS:
        raise UsageError(f"unknown optimizer {name!r}: expected one of {', '.join(OPTIMIZERS)}")
    row = OPTIMIZERS[name]
    corrected = row.bias_correction if bias_correction is None else bias_correction
    optimizer: Any = Optimizer(
        rule=row.rule(beta_1, beta_2, epsilon, corrected),
        schedule=schedule,
        weight_decay=Selection.of([*([(row.not_decayed, 0.0)] if row.not_decayed else []), ("", weight_decay)]),
        trust_ratio=Selection.of([*([(row.not_scaled, False)] if row.not_scaled else []), ("", True)]),
        learning_rate_multiplier=Selection.of([*learning_rate_multipliers, ("", 1.0)]),
        frozen=tuple(frozen),
        clip_norm=clip_norm,
        transforms=tuple(transforms),
        transforms_after_clipping=tuple(transforms_after_clipping),
    )
    for each in around:
        optimizer = each(optimizer)
    return optimizer
