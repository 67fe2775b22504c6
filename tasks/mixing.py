"""Several pretraining objectives of one model, one of them at a step (ERNIE-M, Ouyang et al. 2021, section 3).

The model has the heads of all. A batch says by the name of a feature which objective it is of (`data.mixture.marked`):
what is compiled for it knows the objective, and learns and logs the losses of that one alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import keras
from absl.app import UsageError

from data.mixture import unmarked
from ground.tensors import Tensor
from modeling import LanguageModel, declared

if TYPE_CHECKING:
    from modeling.model import HeadOfModel
    from tasks.losses import Terms
    from tasks.pretraining import PretrainingTask


class MixedTask:
    """The losses of several objectives under names of their own; implements `training.engine.Task`.

    Args:
        members: the task of each objective by its name, all of one config.
        weights: by which all losses of an objective are multiplied; 1 by default.

    Attributes:
        loss_weights: weight of every loss by the name under which it is logged (`name_of_term`).
        loss_schedules: factors of these weights, as functions of the step.
        metrics: names of the metrics.

    Raises:
        UsageError: one model cannot have the heads of all.
    """

    def __init__(self, members: Mapping[str, PretrainingTask], weights: Mapping[str, float] | None = None):
        self.members = dict(members)
        first = next(iter(self.members.values()))
        self.config, self.computation = first.config, first.computation
        self._names = {
            objective: {
                name: name_of_term(objective, name, tuple(task.loss_weights))
                for name in (*task.loss_weights, *task.metrics)
            }
            for objective, task in self.members.items()
        }
        self.loss_weights = {
            self._names[objective][name]: weight * (weights or {}).get(objective, 1.0)
            for objective, task in self.members.items()
            for name, weight in task.loss_weights.items()
        }
        self.loss_schedules = {
            self._names[objective][name]: schedule
            for objective, task in self.members.items()
            for name, schedule in task.loss_schedules.items()
        }
        self.metrics = tuple(
            self._names[objective][name] for objective, task in self.members.items() for name in task.metrics
        )
        self._heads = self._joined_heads()

    def build_model(self) -> LanguageModel:
        """Return a new model with the heads of all objectives; raises `UsageError` where the config has no place."""
        heads = [*self._heads.values()]
        try:
            return LanguageModel(self.config, heads, self.computation, name="pretraining_model")
        except UsageError:
            for objective, task in self.members.items():
                try:
                    declared(task.build_model)
                except UsageError as error:
                    raise UsageError(f"--objective: {objective} cannot be learnt by this model: {error}") from None
            raise

    def companions(self) -> Mapping[str, keras.Model]:
        """Return the further models of all objectives."""
        return {
            f"{objective}/{name}": model
            for objective, task in self.members.items()
            for name, model in task.companions().items()
        }

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the weight of every loss of the batch's objective."""
        objective, batch = self._read(batch)
        return self._named(objective, self.members[objective].normalizers(batch))

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        """Return losses and metrics of the batch's objective."""
        objective, batch = self._read(batch)
        losses, metrics = self.members[objective].terms(model, batch, seed=seed, training=training)
        return self._named(objective, losses), self._named(objective, metrics)

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what the losses of the batch's objective predict, under the names that they have alone."""
        objective, batch = self._read(batch)
        return self.members[objective].predictions(model, batch)

    def _read(self, batch: Mapping[str, Tensor]) -> tuple[str, Mapping[str, Tensor]]:
        objective, batch = unmarked(batch)
        if objective not in self.members:
            raise ValueError(f"a batch of {objective or 'no objective'}; expected one of {', '.join(self.members)}")
        return objective, batch

    def _named(self, objective: str, values: Mapping[str, Any]) -> dict[str, Any]:
        return {self._names[objective][name]: value for name, value in values.items()}

    def _joined_heads(self) -> dict[str, HeadOfModel]:
        """Return the constructors of the heads of all objectives; raises `UsageError` where two cannot be one."""
        owners: dict[str, str] = {}
        heads: dict[str, HeadOfModel] = {}
        labelled = ""
        for objective, task in self.members.items():
            if labels := task.objective.labels:
                former = self.members[labelled].objective.labels if labelled else labels
                if labels != former:
                    raise UsageError(
                        f"--objective: {labelled} and {objective} cannot share a model, whose one sentence-pair head "
                        f"would tell {', '.join(former)} and also {', '.join(labels)}: learn one of the two"
                    )
                labelled = objective
            for name, head in task.heads.items():
                owner = owners.setdefault(name, objective)
                joined = _joined(heads.get(name, head), head)
                if joined is None:
                    raise UsageError(
                        f"--objective: {owner} and {objective} cannot share a model: each needs a head {name} of its "
                        "own kind; learn one of the two"
                    )
                heads[name] = joined
        return heads


def name_of_term(objective: str, name: str, losses: tuple[str, ...]) -> str:
    """Return the name of a loss or a metric of an objective beside those of others.

    The only loss of an objective has the objective's name; of several, each has that before its own.

    Example:
        tlm, whose loss is masked_lm              masked_lm -> tlm, masked_lm_accuracy -> tlm_accuracy
        veco, of masked_lm, crossed and others    crossed -> veco_crossed, crossed_accuracy -> veco_crossed_accuracy
        camlm, whose loss is camlm                camlm -> camlm
    """
    if len(losses) == 1 and (name == losses[0] or name.startswith(f"{losses[0]}_")):
        return objective + name.removeprefix(losses[0])
    return name if name == objective or name.startswith(f"{objective}_") else f"{objective}_{name}"


def _joined(one: HeadOfModel, other: HeadOfModel) -> HeadOfModel | None:
    """Return the one of two constructors that makes a head for both; None where neither does.

    A subclass does for batches of its base class what that does.
    """
    (first, further), (second, same) = map(_taken_apart, (one, other))
    if further != same:
        return None
    if first is second or (isinstance(first, type) and isinstance(second, type) and issubclass(first, second)):
        return one
    return other if isinstance(first, type) and isinstance(second, type) and issubclass(second, first) else None


def _taken_apart(head: HeadOfModel) -> tuple[Any, tuple[Any, ...]]:
    """Return a constructor and the arguments that are filled in."""
    if isinstance(head, partial):
        return head.func, (head.args, head.keywords)
    return head, ((), {})
