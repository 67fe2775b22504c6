"""Pruning while a model is trained, as CAP does it (Xu et al. 2022, arXiv 2112.07198, section 3): whole heads and
feed-forward units by first-order importance, or single weights by magnitude, movement or learnt scores.

A pruned weight is 0, and a weight that is 0 is pruned: the model's own weights are the masks, so checkpoints,
evaluations and exports know nothing of pruning. A single weight that is pruned may come back (Sanh et al. 2020): its
value goes on in the slot `held`. Heads and units do not come back. Differs from CAP's code in that a level of heads and
units is ranked after training under the head of the task, and begins from the weights of the level before.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from absl.app import UsageError

from ground.tensors import ops
from optimization.optimizer import Optimizer, Slots
from optimization.schedules import Schedule

Tensor = Any
Weights = Mapping[str, Tensor]
_KERNELS = re.compile(r"backbone/encoder/(attention|feed_forward)_\d+/\w+/kernel$")
_OUTPUTS = re.compile(r"(backbone/encoder/(?:attention|feed_forward)_\d+/)output/kernel$")


@dataclass(frozen=True)
class Cubic:
    """Zhu and Gupta's curve (2017): 0 up to `begin`, `final` from `end` on, steep at first.

    Example: final .8, begin 0, end 10: step 0 gives 0, step 5 gives .8 * (1 - .5**3) = .7, step 10 gives .8
    """

    final: float
    begin: int
    end: int

    def __call__(self, step: Tensor) -> Tensor:
        """Return the value at a step, float32."""
        done = (ops.cast(step, "float32") - self.begin) / max(self.end - self.begin, 1)
        return self.final * (1.0 - ops.power(1.0 - ops.clip(done, 0.0, 1.0), 3))


@dataclass(frozen=True)
class Structured:
    """Heads and units: the least important of all layers become 0 at one step, and stay.

    A head is as important as the derivative of the loss by a factor on what it says: `<W, dL/dW>` over its rows of the
    output matrix W, absolute, summed over the steps, of length 1 in each layer (Michel et al. 2019). A layer
    keeps its best head and its best unit. The sums lie in slots of the biases that have a number for each unit.

    Attributes:
        sparsity: share of the heads, and of the units, of all layers that are 0 afterwards.
        at: the step before which they are chosen.
        head_size: rows of the output matrix for each head.
    """

    sparsity: float
    at: int
    head_size: int
    slot_names = ("importance",)

    def __call__(self, optimizer: Optimizer) -> PrunedOptimizer:
        return PrunedOptimizer(optimizer, self)

    def init(self, parameters: Weights) -> Slots:
        """Return sums of 0."""
        biases = [self._bias(name) for name in self._outputs(parameters)]
        return {"importance": {name: ops.zeros(parameters[name].shape, "float32") for name in biases}}

    def before(self, gradients: Weights, parameters: Weights, slots: Slots, step: Tensor) -> Before:
        """Return gradients without those of pruned rows, the parameters, and the slots with this step's importance."""
        gradients, sums = dict(gradients), dict(slots["importance"])
        for name in self._outputs(gradients):
            weight, gradient = parameters[name], ops.cast(gradients[name], "float32")
            felt = ops.sum(weight * gradient, axis=1)
            heads = self._heads(name)
            if heads:
                felt = ops.repeat(ops.sum(ops.reshape(felt, (-1, heads)), axis=1), heads)
            sums[self._bias(name)] = sums[self._bias(name)] + ops.abs(felt)
            gradients[name] = gradient * ops.cast(_is_live(weight)[:, None], "float32")
        return gradients, dict(parameters), {"importance": sums}

    def after(self, old: Weights, new: Weights, slots: Slots, step: Tensor) -> tuple[dict[str, Tensor], Slots]:
        """Return the new parameters with pruned rows at 0, from the chosen step on with as many as there are to be."""
        found = dict(new)
        for heads in (True, False):
            names = [name for name in self._outputs(new) if bool(self._heads(name)) is heads]
            live = {name: _is_live(old[name]) for name in names}
            kept = self._kept(live, {name: slots["importance"][self._bias(name)] for name in names}, step)
            found |= {name: ops.where(kept[name][:, None], new[name], 0.0) for name in names}
        return found, slots

    def _kept(self, live: Mapping[str, Tensor], sums: Weights, step: Tensor) -> dict[str, Tensor]:
        """Return the rows of each matrix that are kept, boolean [R]; the matrices are all of one kind."""
        names = list(live)
        sizes = [int(live[name].shape[0]) // (self._heads(name) or 1) for name in names]
        wanted = max(round((1.0 - self.sparsity) * sum(sizes)), len(names))

        def units(value: Tensor, name: str) -> Tensor:
            return value[:: self._heads(name) or 1]

        alive = [units(live[name], name) for name in names]
        left = ops.sum(ops.cast(ops.concatenate(alive), "int32"))
        due = ops.logical_and(ops.cast(step, "int32") >= self.at, left > wanted)

        def ranked() -> Tensor:
            scores = []
            for name, own in zip(names, alive, strict=True):
                score = units(sums[name], name)
                score = score / ops.maximum(ops.sqrt(ops.sum(ops.square(score))), 1e-20)
                score = ops.where(own, score, -1.0)
                best = ops.arange(score.shape[0]) == ops.argmax(score)
                scores.append(ops.where(best, 2.0, score))
            return largest(ops.concatenate(scores), wanted)

        chosen = ops.cond(due, ranked, lambda: ops.concatenate(alive))
        ends = list(itertools.accumulate(sizes))
        parts = [chosen[end - size : end] for size, end in zip(sizes, ends, strict=True)]
        return {name: ops.repeat(part, self._heads(name) or 1) for name, part in zip(names, parts, strict=True)}

    def _heads(self, name: str) -> int:
        return self.head_size if "/attention_" in name else 0

    @staticmethod
    def _outputs(names: Iterable[str]) -> list[str]:
        return [name for name in names if _OUTPUTS.match(name)]

    @staticmethod
    def _bias(name: str) -> str:
        inner = "query" if "/attention_" in name else "intermediate"
        return _OUTPUTS.sub(rf"\g<1>{inner}/bias", name)


@dataclass(frozen=True)
class Unstructured:
    """Single weights of every matrix of the layers; a matrix keeps those of the highest scores.

    Attributes:
        sparsity: step -> share of a matrix that is 0; with `threshold` that is of no account.
        every: steps from one choice to the next.
        scores: "magnitude", the weight's own; "movement", learnt by `-dL/dW * W` (straight through the mask); or
            "soft", learnt likewise, and a weight counts while the sigmoid of its score is above `threshold`.
        rate: step -> learning rate of scores.
        threshold: step -> least sigmoid of a score.
        penalty: step -> weight of the mean of the sigmoids, which lowers them.
    """

    sparsity: Schedule
    every: int
    scores: str = "magnitude"
    rate: Schedule | None = None
    threshold: Schedule | None = None
    penalty: Schedule | None = None

    def __call__(self, optimizer: Optimizer) -> PrunedOptimizer:
        return PrunedOptimizer(optimizer, self)

    @property
    def learns(self) -> bool:
        """Whether scores are learnt."""
        return self.scores != "magnitude"

    @property
    def slot_names(self) -> tuple[str, ...]:
        """Values of pruned weights; scores, and the moments of these."""
        return ("held", "score", "score_m", "score_v") if self.learns else ("held",)

    def init(self, parameters: Weights) -> Slots:
        """Return zeros."""
        names = self._matrices(parameters)
        return {
            slot: {name: ops.zeros(parameters[name].shape, "float32") for name in names} for slot in self.slot_names
        }

    def before(self, gradients: Weights, parameters: Weights, slots: Slots, step: Tensor) -> Before:
        """Return gradients of what is not pruned, the parameters with pruned values, and the slots with new scores."""
        gradients, parameters, slots = dict(gradients), dict(parameters), {k: dict(v) for k, v in slots.items()}
        matrices = self._matrices(gradients)
        for name in matrices:
            weight, gradient = parameters[name], ops.cast(gradients[name], "float32")
            hidden = weight + slots["held"][name]
            if self.learns:
                self._learn(name, gradient * hidden, slots, step, len(matrices))
            gradients[name] = ops.where(weight != 0.0, gradient, 0.0)
            parameters[name] = hidden
        return gradients, parameters, slots

    def after(self, old: Weights, new: Weights, slots: Slots, step: Tensor) -> tuple[dict[str, Tensor], Slots]:
        """Return the new parameters with pruned ones at 0, and what these are in the slot `held`."""
        found, held = dict(new), dict(slots["held"])
        due = ops.equal(ops.cast(step, "int32") % self.every, 0)
        for name in self._matrices(new):
            hidden, live = new[name], old[name] != 0.0
            score = slots["score"][name] if self.learns else ops.abs(hidden)
            kept = ops.cond(due, lambda h=hidden, s=score: self._chosen(h, s, step), lambda live=live: live)
            found[name] = ops.where(kept, hidden, 0.0)
            held[name] = ops.where(kept, 0.0, hidden)
        return found, {**slots, "held": held}

    def _learn(self, name: str, gradient: Tensor, slots: Slots, step: Tensor, matrices: int) -> None:
        """Let the scores of a matrix take a step of Adam."""
        assert self.rate is not None
        score = slots["score"][name]
        if self.penalty is not None:
            chance = ops.sigmoid(score)
            gradient = gradient + self.penalty(step) * chance * (1.0 - chance) / (matrices * math.prod(score.shape))
        m = 0.9 * slots["score_m"][name] + 0.1 * gradient
        v = 0.999 * slots["score_v"][name] + 0.001 * ops.square(gradient)
        t = ops.cast(step, "float32") + 1.0
        update = m / (1.0 - ops.power(0.9, t)) / (ops.sqrt(v / (1.0 - ops.power(0.999, t))) + 1e-8)
        slots["score"][name] = score - self.rate(step) * update
        slots["score_m"][name], slots["score_v"][name] = m, v

    def _chosen(self, hidden: Tensor, score: Tensor, step: Tensor) -> Tensor:
        """Return which weights of a matrix are kept; one whose value is lost, from a former run, is not."""
        if self.threshold is not None:
            return ops.logical_and(ops.sigmoid(score) > self.threshold(step), hidden != 0.0)
        size = math.prod(score.shape)
        wanted = ops.cast(ops.round((1.0 - self.sparsity(step)) * size), "int32")
        lowest = ops.min(score) - 1.0
        flat = ops.reshape(ops.where(hidden != 0.0, score, lowest), (size,))
        return ops.reshape(largest(flat, ops.clip(wanted, 1, size)), hidden.shape)

    @staticmethod
    def _matrices(names: Iterable[str]) -> list[str]:
        return [name for name in names if _KERNELS.match(name)]


Before = tuple[dict[str, Tensor], dict[str, Tensor], Slots]


def largest(scores: Tensor, count: Tensor | int) -> Tensor:
    """Return where the `count` largest of scores [n] are, boolean [n]; of equal ones those that come first.

    Example: [3 1 3 3], 2 -> [True False True False]
    """
    ordered = ops.sort(scores)
    least = ops.take(ordered, ops.cast(scores.shape[0], "int32") - ops.cast(count, "int32"))
    above, equal = scores > least, scores == least
    left = ops.cast(count, "int32") - ops.sum(ops.cast(above, "int32"))
    return ops.logical_or(above, ops.logical_and(equal, ops.cumsum(ops.cast(equal, "int32")) <= left))


@dataclass(frozen=True)
class PrunedOptimizer:
    """An optimizer after whose updates some weights are 0; fulfils `training.engine.Optimizer`.

    Attributes:
        optimizer: updates what is not pruned.
        pruning: what is pruned, and when.
    """

    optimizer: Optimizer
    pruning: Structured | Unstructured

    def trainable(self, names: Iterable[str]) -> list[str]:
        """Return the names that are trained; raises `UsageError` where a layer to be pruned is frozen."""
        names = list(names)
        trained = self.optimizer.trainable(names)
        if frozen := [name for name in names if _KERNELS.match(name) and name not in {*trained}]:
            raise UsageError(
                f"{frozen[0]} is frozen, and a layer that is pruned has to learn: leave out --freeze and "
                "--freeze_layers, or --pruning"
            )
        return trained

    def init(self, parameters: Weights) -> Slots:
        """Return the optimizer's slots and those of pruning, which only some of the variables have."""
        return self.optimizer.init(parameters) | self.pruning.init(parameters)

    def update(
        self, gradients: Weights, parameters: Weights, slots: Slots, step: Tensor
    ) -> tuple[dict[str, Tensor], Slots, dict[str, Tensor]]:
        """Return new parameters, new slots and the numbers of the step; see `Optimizer.update`."""
        ours = {name: slots[name] for name in self.pruning.slot_names}
        theirs = {name: slots[name] for name in slots if name not in ours}
        masked, hidden, ours = self.pruning.before(gradients, parameters, ours, step)
        new, theirs, facts = self.optimizer.update(masked, hidden, theirs, step)
        new, ours = self.pruning.after(parameters, new, ours, step)
        return new, theirs | ours, facts


def _is_live(weight: Tensor) -> Tensor:
    """Return which rows of a matrix are not pruned, boolean [R]."""
    return ops.any(weight != 0.0, axis=1)
