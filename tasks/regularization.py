"""Losses that keep predictions stable: R-Drop (arXiv 2106.14448) and StructBERT's adversarial loss.

Each measures how far the probabilities move when the same examples pass again, under another dropout mask or with
perturbed word vectors. A third technique is a third class of this form and a flag of run_classifier.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from absl.app import UsageError

from ground.tensors import Tensor, ops
from modeling.differentiation import gradient
from modeling.randomness import fold_in, normal, seeded


@dataclass(frozen=True)
class Passes:
    """One batch in training, which a technique passes through the model as often as it needs.

    Attributes:
        logits: of the ordinary pass, [B, ...].
        logits_of: (key, word_noise_BLE or None) -> logits of another pass; dropout follows from the key.
        divergence: two logits -> how far apart their distributions are, [B]; by the kind of head.
        num_classes: classes of each distribution, or of each example's, [B].
        noise_shape: (B, L, E).
        key: uint32[2], for this technique alone.
    """

    logits: Tensor
    logits_of: Callable[[Tensor, Tensor | None], Tensor]
    divergence: Callable[[Tensor, Tensor], Tensor]
    num_classes: int | Tensor
    noise_shape: tuple[int | Tensor, ...]
    key: Tensor


class Regularizer(Protocol):
    """A weighted loss beside the cross-entropy, while training."""

    name: ClassVar[str]

    @property
    def weight(self) -> float: ...

    def __call__(self, passes: Passes) -> tuple[Tensor, list[Tensor]]:
        """Return the loss of each example [B], and the logits of further passes for the cross-entropy."""
        ...


def usable(regularizers: Sequence[Regularizer], refused: str = "") -> tuple[Regularizer, ...]:
    """Return those that weigh something; raises `UsageError` for the first of them where the task cannot have any.

    Args:
        regularizers: as the flags give them.
        refused: why the task has no use for them; empty where it has.
    """
    kept = tuple(each for each in regularizers if each.weight)
    if kept and refused:
        raise UsageError(
            f"--{kept[0].name}_weight={kept[0].weight:g}: {refused}; set --{kept[0].name}_weight=0 or use a task with "
            "two labels or more"
        )
    return kept


@dataclass(frozen=True)
class RDrop:
    """Half the symmetric divergence of two dropout masks; cross-entropy is the mean of both (as the authors' code).

    The paper's formula adds the two cross-entropies, so that its alpha is half of this weight.
    """

    weight: float
    name: ClassVar[str] = "r_drop"

    def __call__(self, passes: Passes) -> tuple[Tensor, list[Tensor]]:
        logits = passes.logits_of(passes.key, None)
        return 0.5 * passes.divergence(passes.logits, logits), [logits]


@dataclass(frozen=True)
class Adversarial:
    """StructBERT's adversarial loss as in AliceMind's sofa, whose values are the defaults; three forward passes.

    Word vectors, perturbed at random, take one step in the direction in which the prediction moves most. Every pass has
    a dropout mask of its own. Where released code gives up a batch, with a gradient of 0, there is no step here.

    Attributes:
        weight: of the loss.
        sigma: deviation of the random perturbation.
        step: length of the step along the gradient, which is scaled to a largest component of 1 for each example.
        bound: largest step of any component.
    """

    weight: float = 1.0
    sigma: float = 5e-6
    step: float = 5e-5
    bound: float = 1e-5
    name: ClassVar[str] = "adversarial"

    def __call__(self, passes: Passes) -> tuple[Tensor, list[Tensor]]:
        with seeded(fold_in(passes.key, 1)):
            noise_BLE = normal(passes.noise_shape, self.sigma)
        before = ops.stop_gradient(passes.logits)

        def movement(noise_BLE: Tensor) -> Tensor:
            return ops.sum(passes.divergence(before, passes.logits_of(fold_in(passes.key, 2), noise_BLE)))

        step_BLE = self.step_along(gradient(movement, noise_BLE))
        logits = passes.logits_of(fold_in(passes.key, 3), noise_BLE + step_BLE)
        return passes.divergence(passes.logits, logits) / passes.num_classes, []

    def step_along(self, gradient_BLE: Tensor) -> Tensor:
        """Return the perturbation [B, L, E] that follows from the gradient; no component exceeds `bound`."""
        largest_B11 = ops.max(ops.absolute(gradient_BLE), axis=(1, 2), keepdims=True)
        direction_BLE = gradient_BLE / ops.where(largest_B11 > 0, largest_B11, 1.0)
        return ops.clip(self.step * direction_BLE, -self.bound, self.bound)


def symmetric_divergence(a_BC: Tensor, b_BC: Tensor) -> Tensor:
    """Return KL(a || b) + KL(b || a) of the distributions of two logits [B, C], in nats [B]."""
    a_BC, b_BC = ops.log_softmax(ops.cast(a_BC, "float32")), ops.log_softmax(ops.cast(b_BC, "float32"))
    return ops.sum((ops.exp(a_BC) - ops.exp(b_BC)) * (a_BC - b_BC), axis=-1)
