"""Knowledge distillation (Hinton et al. 2015): a student of any kind of task learns what a teacher decides.

    (1 - weight) * the task's own losses + weight * T^2 KL(teacher || student at temperature T)

The teacher is a companion of the engine: placed beside the student, without dropout, never trained or saved. It reads
the very features of the student's ordinary pass, of which there is no second one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import keras

from ground.tensors import Tensor, ops
from modeling.fusion import fusing
from tasks.decisions import Decisions, divergence
from tasks.losses import Terms

NAME = "distillation"


class Teacher(Protocol):
    """A trained model of the same kind of task, labels and vocabulary; two of them are equal only if they are one."""

    def build(self) -> keras.Model:
        """Return the model with its weights."""
        ...


class StudentTask(Protocol):
    """A `training.engine.Task` that says what its model decides."""

    loss_weights: Mapping[str, float]
    metrics: tuple[str, ...]

    def build_model(self) -> keras.Model: ...
    def companions(self) -> Mapping[str, keras.Model]: ...
    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def terms(
        self, model: Any, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]: ...
    def predictions(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]: ...
    def decisions(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Decisions: ...


@dataclass(frozen=True)
class Distillation:
    """What is learnt from the teacher, and how much; called with a task it returns that of a student.

    Attributes:
        teacher: whose decisions are learnt.
        weight: share of the teacher's decisions; the task's own losses keep the rest. 1 ignores the labels.
        temperature: by which the logits of both are divided.
    """

    teacher: Teacher
    weight: float = 0.5
    temperature: float = 2.0

    def __call__(self, task: StudentTask) -> DistilledTask:
        return DistilledTask(task, self)


class Watched:
    """A model that remembers its first call, the ordinary pass."""

    def __init__(self, model: keras.Model):
        self._model = model
        self.features: Mapping[str, Tensor] = {}
        self.outputs: Mapping[str, Any] = {}

    def __call__(self, features: Mapping[str, Tensor], **further: Any) -> Mapping[str, Any]:
        outputs = self._model(features, **further)
        if not self.outputs:
            self.features, self.outputs = features, outputs
        return outputs


class DistilledTask:
    """A task whose model learns from a teacher too; implements `training.engine.Task`.

    Evaluation and prediction are the student's. Its further losses, as R-Drop's, weigh what they do without a teacher.
    """

    def __init__(self, student: StudentTask, distillation: Distillation):
        self.student, self.distillation = student, distillation
        further = {each.name for each in getattr(student, "regularizers", ())}
        kept = {name: 1.0 if name in further else 1.0 - distillation.weight for name in student.loss_weights}
        self.loss_weights = {name: kept[name] * weight for name, weight in student.loss_weights.items()}
        self.loss_weights[NAME] = distillation.weight
        self.metrics = student.metrics
        self._teacher: Any = None

    def build_model(self) -> keras.Model:
        """Return a new student."""
        return self.student.build_model()

    def companions(self) -> Mapping[str, keras.Model]:
        """Return the teacher, beside the student's own companions."""
        self._teacher = self.distillation.teacher.build()
        return {**self.student.companions(), "teacher": self._teacher}

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Count as the student does, and its decisions as its first loss."""
        counts = self.student.normalizers(batch)
        return {**counts, NAME: next(iter(counts.values()))}

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        """Return the student's losses and metrics; while training, the distance from the teacher's decisions too."""
        watched = Watched(model)
        losses, metrics = self.student.terms(watched, batch, seed=seed, training=training)
        if not training:
            return {**losses, NAME: (ops.zeros(()), ops.zeros(()))}, metrics
        with fusing():
            taught = self._teacher(watched.features, training=False, scores_only=True)
        ours, theirs = (self.student.decisions(outputs, batch) for outputs in (watched.outputs, taught))
        distances = divergence(ours, theirs, self.distillation.temperature)
        total = ops.sum(ops.where(ours.weights > 0, distances, 0.0) * ours.weights)
        return {**losses, NAME: (total, ops.sum(ours.weights))}, metrics

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the student's predictions."""
        return self.student.predictions(model, batch)
