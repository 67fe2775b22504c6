"""The optimizer: transforms, clipping and one rule over all variables, as pure functions keyed by variable name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from absl.app import UsageError

from ground.tensors import ops
from optimization.schedules import Schedule
from optimization.selection import Selection, matching
from optimization.transforms import Transform, clip_by_global_norm, global_norm

Tensor = Any
Slots = dict[str, dict[str, Tensor]]


class Rule(Protocol):
    """The arithmetic of one optimizer on one variable, without the learning rate."""

    slot_names: ClassVar[tuple[str, ...]]
    """Names of the tensors, each of the variable's shape, kept from step to step; they start at zero."""

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
        """Return (u, new slots); the variable then becomes `parameter - learning_rate * u`."""
        ...


@dataclass(frozen=True)
class Optimizer:
    """Gradients -> updates.

    Attributes:
        rule: the arithmetic on each variable.
        schedule: step -> learning rate.
        weight_decay: decoupled decay of each variable; it is multiplied by the learning rate.
        trust_ratio: whether LAMB's ratio applies; rules without one ignore it.
        learning_rate_multiplier: factor on the learning rate of each variable, decay included; a number, or a schedule
            of its own. Where it is 0 the variable stays, bit for bit, while its moments go on.
        frozen: expressions over names; matching variables have no slots, no gradient and no part in the global norm.
        clip_norm: largest global norm of the gradients; None does not clip.
        transforms: applied in order before clipping.
        transforms_after_clipping: applied in order between clipping and the rule; no part in `gradient_norm`.
    """

    rule: Rule
    schedule: Schedule
    weight_decay: Selection[float]
    trust_ratio: Selection[bool] = field(default_factory=lambda: Selection.always(True))
    learning_rate_multiplier: Selection[float | Schedule] = field(default_factory=lambda: Selection.always(1.0))
    frozen: tuple[str, ...] = ()
    clip_norm: float | None = 1.0
    transforms: tuple[Transform, ...] = ()
    transforms_after_clipping: tuple[Transform, ...] = ()

    def trainable(self, names: Iterable[str]) -> list[str]:
        """Return the names that are not frozen, in order; raises `UsageError` if none is left."""
        names = list(names)
        frozen = matching(self.frozen, names)
        left = [name for name in names if name not in frozen]
        if not left:
            raise UsageError(
                f"all {len(names)} variables are frozen by {', '.join(self.frozen)}: nothing is left to train; let "
                "--freeze or --freeze_layers name fewer"
            )
        return left

    def init(self, parameters: Mapping[str, Tensor]) -> Slots:
        """Return the slots `{slot: {variable name: zeros}}`; raises `UsageError` for a name without a rule."""
        names = self.trainable(parameters)
        for selection in (self.weight_decay, self.trust_ratio, self.learning_rate_multiplier):
            selection.resolve(names)
        return {
            slot: {name: ops.zeros(parameters[name].shape, "float32") for name in names}
            for slot in self.rule.slot_names
        }

    def update(
        self, gradients: Mapping[str, Tensor], parameters: Mapping[str, Tensor], slots: Slots, step: Tensor
    ) -> tuple[dict[str, Tensor], Slots, dict[str, Tensor]]:
        """Return new parameters, new slots, and `learning_rate` and `gradient_norm` (before clipping), two scalars.

        `gradients` are dense and summed over replicas and micro-batches; what has none keeps its value and slots.
        `step` is the number of steps before this one.
        """
        for transform in self.transforms:
            gradients = transform(gradients, step)
        if self.clip_norm is None:
            norm = global_norm(gradients)
        else:
            gradients, norm = clip_by_global_norm(gradients, self.clip_norm)
        for transform in self.transforms_after_clipping:
            gradients = transform(gradients, step)
        rate = self.schedule(step)
        decay = self.weight_decay.resolve(gradients)
        ratio = self.trust_ratio.resolve(gradients)
        multiplier = self.learning_rate_multiplier.resolve(gradients)
        new_parameters, new_slots = dict(parameters), {slot: dict(values) for slot, values in slots.items()}
        for name, gradient in gradients.items():
            parameter = parameters[name]
            own = {slot: slots[slot][name] for slot in slots}
            update, own = self.rule(gradient, parameter, own, step, weight_decay=decay[name], trust_ratio=ratio[name])
            factor = multiplier[name]
            new_parameters[name] = parameter - rate * (factor(step) if callable(factor) else factor) * update
            for slot, value in own.items():
                new_slots[slot][name] = value
        return new_parameters, new_slots, {"learning_rate": rate, "gradient_norm": norm}
