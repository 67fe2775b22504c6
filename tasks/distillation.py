"""Knowledge distillation (Hinton et al. 2015): a student of any kind of task learns what a teacher decides.

    (1 - weight) * the task's own losses + weight * T^2 KL(teacher || student at temperature T)
    + hidden_weight * distance of hidden states + attention_weight * distance of attention

The teacher is a companion of the engine: placed beside the student, without dropout, never trained or saved. It reads
the very features of the student's ordinary pass, of which there is no second one. A cached teacher has spoken before,
and its scores come with the batch (`tasks/taught.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import keras

from ground.tensors import Tensor, ops
from modeling.fusion import fusing
from modeling.scaffold import scaffolded
from modeling.sharing import shared_bricks
from tasks.decisions import Decisions, divergence
from tasks.layer_distillation import attention_distance, hidden_distance, layer_pairs, looks
from tasks.losses import Terms

if TYPE_CHECKING:
    from modeling.config import Config

TAUGHT = "teacher_scores"
"""Feature of a batch: what a teacher says, float32 [B, outputs by name, rows of an example, tokens or 1, classes]."""
NAME, HIDDEN, ATTENTION = "distillation", "hidden_distillation", "attention_distillation"


class Teacher(Protocol):
    """A trained model of the same kind of task, labels and vocabulary; two of them are equal only if they are one."""

    @property
    def config(self) -> Config: ...
    @property
    def task(self) -> StudentTask: ...

    def build(self) -> keras.Model:
        """Return the model with its weights."""
        ...


class StudentTask(Protocol):
    """A `training.engine.Task` that says what its model decides."""

    config: Config
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
        hidden_weight: of the distance of hidden states; through a projection that is learnt where widths differ.
        attention_weight: of the distance of where attention looks.
        layers: which are compared, as `tasks.layer_distillation.layer_pairs` reads them.
        cached: whether batches bring the teacher's scores, so that the teacher is not needed.
    """

    teacher: Teacher
    weight: float = 0.5
    temperature: float = 2.0
    hidden_weight: float = 0.0
    attention_weight: float = 0.0
    layers: tuple[str, ...] = ()
    cached: bool = False

    def __call__(self, task: StudentTask) -> DistilledTask:
        return DistilledTask(task, self)


class Watched:
    """A model that remembers its first call, the ordinary pass.

    Args:
        model: called instead.
        scores_only: whether the first call gives the outputs of the heads alone; None leaves that to the caller.
    """

    def __init__(self, model: keras.Model, *, scores_only: bool | None = None):
        self._model, self._scores_only = model, scores_only
        self.features: Mapping[str, Tensor] = {}
        self.outputs: Mapping[str, Any] = {}

    def __call__(self, features: Mapping[str, Tensor], **further: Any) -> Mapping[str, Any]:
        if self.outputs:
            return self._model(features, **further)
        if self._scores_only is not None:
            further["scores_only"] = self._scores_only
        self.features, self.outputs = features, self._model(features, **further)
        return self.outputs


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
        of_layers = {HIDDEN: distillation.hidden_weight, ATTENTION: distillation.attention_weight}
        self._of_layers = {name: weight for name, weight in of_layers.items() if weight}
        self.loss_weights |= self._of_layers
        self.metrics = student.metrics
        sizes = (len(shared_bricks(config)) for config in (student.config, distillation.teacher.config))
        self._pairs = layer_pairs(distillation.layers, *sizes)
        self._teacher: Any = None

    def build_model(self) -> keras.Model:
        """Return a new student; where hidden states of another width are learnt, with a projection to them."""
        own, other = self.student.config.hidden_size, self.distillation.teacher.config.hidden_size
        with scaffolded(other if HIDDEN in self._of_layers and own != other else None):
            return self.student.build_model()

    def companions(self) -> Mapping[str, keras.Model]:
        """Return the teacher, beside the student's own companions."""
        if self.distillation.cached:
            return self.student.companions()
        self._teacher = self.distillation.teacher.build()
        return {**self.student.companions(), "teacher": self._teacher}

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Count as the student does, its decisions as its first loss, and of layers the rows that have a token."""
        counts = self.student.normalizers(batch)
        rows = ops.sum(_has_token(batch["input_mask"]))
        return {**counts, NAME: next(iter(counts.values())), **dict.fromkeys(self._of_layers, rows)}

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        """Return the student's losses and metrics; while training, the distance from the teacher too."""
        if not training:
            losses, metrics = self.student.terms(model, batch, seed=seed, training=False)
            return losses | {name: (ops.zeros(()), ops.zeros(())) for name in (NAME, *self._of_layers)}, metrics
        cached, layers = self.distillation.cached, bool(self._of_layers)
        watched = Watched(model, scores_only=cached or (False if layers else None))
        own = {name: value for name, value in batch.items() if name != TAUGHT}
        losses, metrics = self.student.terms(watched, own, seed=seed, training=True)
        if cached:
            taught, further = _outputs_of(batch[TAUGHT], watched.outputs), {}
        else:
            with fusing():
                taught = self._teacher(watched.features, training=False, scores_only=not layers)
                further = self._layer_terms(model, watched, taught)
        ours, theirs = (self.student.decisions(outputs, batch) for outputs in (watched.outputs, taught))
        distances = divergence(ours, theirs, self.distillation.temperature)
        total = ops.sum(ops.where(ours.weights > 0, distances, 0.0) * ours.weights)
        return {**losses, NAME: (total, ops.sum(ours.weights)), **further}, metrics

    def _layer_terms(self, model: Any, watched: Watched, taught: Mapping[str, Any]) -> Terms:
        mask_BL, found = watched.features["input_mask"], {}
        if HIDDEN in self._of_layers:
            states = (outputs["hidden_states"] for outputs in (watched.outputs, taught))
            found[HIDDEN] = hidden_distance(*states, self._pairs, mask_BL, model.scaffold)
        if ATTENTION in self._of_layers:
            own, other = zip(*(pair for pair in self._pairs if min(pair)), strict=True)
            ours = looks(model, watched.features, watched.outputs, own)
            found[ATTENTION] = attention_distance(ours, looks(self._teacher, watched.features, taught, other), mask_BL)
        real_B = _has_token(mask_BL)
        return {name: (ops.sum(distance_B * real_B), ops.sum(real_B)) for name, distance_B in found.items()}

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the student's predictions."""
        return self.student.predictions(model, batch)


def _outputs_of(scores: Tensor, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the feature TAUGHT as outputs of heads, by the names of the student's."""
    found = {}
    for number, (name, value) in enumerate(sorted(outputs.items())):
        axes = 2 if len(value.shape) == 3 else 1
        found[name] = ops.reshape(scores[:, number], (-1, *scores.shape[-axes:]))
    return found


def _has_token(mask: Tensor) -> Tensor:
    """Return for each row of a mask [..., L] whether it is none that fills up, float32 [...]."""
    return ops.cast(ops.max(mask, axis=-1), "float32")
