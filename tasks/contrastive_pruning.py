"""CAP's contrastive terms (Xu et al. 2022, arXiv 2112.07198, section 3.2): what a pruned model says of a text stays
near to what the pretrained model, the fine-tuned one and its own former levels said of it, and of texts of its label.

    pretrained (PrC), fine_tuned (FiC), snapshots (SnC):  weight * InfoNCE(same text) + weight * SupCon(same label)

A text is its first token's last state, of length 1. What other models say of all training texts is asked once and lies
in a companion, the bank. Differs from the released code in that SupCon is its authors' (Khosla et al. 2020): the code
divides by the number of positives twice, so that its weights of 3 to 10 are about 1 here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ground.tensors import Tensor, ops
from modeling.fusion import fusing
from tasks.distillation import StudentTask, Watched
from tasks.kinds import LabelledDataset
from tasks.losses import Terms
from tasks.taught import WithFeatures, content_keys

ROWS = "bank_rows"
"""Feature of a batch: the row of each example in the bank, then rows of others, int32 [B, 1 + X]; -1 for none."""
CANDIDATES = 4096
"""Texts of the bank beside those of the batch, for all its examples together; the paper's number."""
_NONE = -1e9


@dataclass(frozen=True, eq=False)
class Bank:
    """What other models say of the training texts; equal to itself alone.

    Attributes:
        vectors: float32 [texts, vectors, D], each of length 1.
        labels: int32 [texts].
        rows: row of a text by what a model reads of it.
        sources: (name, first vector, last one + 1).
    """

    vectors: np.ndarray
    labels: np.ndarray
    rows: Mapping[bytes, int]
    sources: Sequence[tuple[str, int, int]]


@dataclass(frozen=True)
class Contrast:
    """The weights of the terms; called with a task it returns one that learns them too.

    Attributes:
        bank: of the training texts.
        weight: of the terms of the same text.
        supervised_weight: of the terms of the same label.
        temperature: by which cosines are divided.
    """

    bank: Bank
    weight: float
    supervised_weight: float
    temperature: float

    def __call__(self, task: StudentTask) -> ContrastedTask:
        return ContrastedTask(task, self)


def contrastive_losses(
    z_BD: Tensor,
    labels_B: Tensor,
    rows_B: Tensor,
    bank_ED: Tensor,
    bank_labels_E: Tensor,
    bank_rows_E: Tensor,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Return InfoNCE and SupCon of each example, float32 [B]; a row of -1 is none, whose losses mean nothing.

    Candidates are the other examples of the batch, which get no gradient, and the bank's. Positives of the first are
    the bank's vectors of the same text, of the second all candidates of the same label.

    Args:
        z_BD: of the batch, of length 1.
        labels_B: of the batch.
        rows_B: the bank's row of each example.
        bank_ED: vectors of the bank.
        bank_labels_E: their labels.
        bank_rows_E: their rows.
        temperature: of the softmax.
    """
    size = z_BD.shape[0]
    candidates_CD = ops.concatenate([ops.stop_gradient(z_BD), bank_ED])
    logits_BC = ops.matmul(z_BD, ops.transpose(candidates_CD)) / temperature
    real_C = ops.concatenate([rows_B, bank_rows_E]) >= 0
    itself_BC = ops.concatenate([ops.eye(size, dtype="bool"), ops.zeros((size, bank_ED.shape[0]), "bool")], axis=1)
    allowed_BC = ops.logical_and(real_C[None], ops.logical_not(itself_BC))
    logs_BC = ops.log_softmax(ops.where(allowed_BC, logits_BC, _NONE))
    same_text_BC = ops.concatenate([ops.zeros((size, size), "bool"), rows_B[:, None] == bank_rows_E[None]], axis=1)
    same_label_BC = labels_B[:, None] == ops.concatenate([labels_B, bank_labels_E])[None]

    def loss(positive_BC: Tensor) -> Tensor:
        positive_BC = ops.cast(ops.logical_and(positive_BC, allowed_BC), "float32")
        count_B = ops.maximum(ops.sum(positive_BC, axis=1), 1.0)
        return -ops.sum(ops.where(positive_BC > 0, logs_BC, 0.0), axis=1) / count_B

    return loss(same_text_BC), loss(same_label_BC)


class BankModel(keras.Model):
    """The bank as a companion: `vectors` [texts, vectors, D], `labels` [texts], floats, as engines cast their parts."""

    def __init__(self, bank: Bank):
        super().__init__(dtype="float32", name="bank_model")
        self.vectors = self.add_weight(shape=bank.vectors.shape, name="vectors", trainable=False)
        self.labels = self.add_weight(shape=bank.labels.shape, name="labels", trainable=False)
        self.vectors.assign(bank.vectors)
        self.labels.assign(bank.labels)
        self.built = True


class ContrastedTask:
    """A task whose texts stay near to what others say of them; a `training.engine.Task` whose answers are its own."""

    def __init__(self, student: StudentTask, contrast: Contrast):
        self.student, self.contrast = student, contrast
        self._names = {f"contrast_{name}": (first, end) for name, first, end in contrast.bank.sources}
        self.loss_weights = {**student.loss_weights, **dict.fromkeys(self._names, 1.0)}
        self.metrics = student.metrics
        self._bank: Any = None

    def build_model(self) -> keras.Model:
        """Return a new model of the task."""
        return self.student.build_model()

    def companions(self) -> Mapping[str, keras.Model]:
        """Return the bank, beside the task's own companions."""
        self._bank = BankModel(self.contrast.bank)
        return {**self.student.companions(), "bank": self._bank}

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Count as the task does, and the examples that are in the bank."""
        known = ops.sum(ops.cast(batch[ROWS][:, 0] >= 0, "float32"))
        return {**self.student.normalizers(batch), **dict.fromkeys(self._names, known)}

    def terms(self, model: Any, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool) -> tuple[Terms, Terms]:
        """Return the task's losses and metrics; while training, the contrastive ones too."""
        own = {name: value for name, value in batch.items() if name != ROWS}
        if not training:
            losses, metrics = self.student.terms(model, own, seed=seed, training=False)
            return losses | {name: (ops.zeros(()), ops.zeros(())) for name in self._names}, metrics
        watched = Watched(model, scores_only=False)
        losses, metrics = self.student.terms(watched, own, seed=seed, training=True)
        with fusing():
            return losses | self._contrasts(watched.outputs["sequence_output"][:, 0], batch), metrics

    def _contrasts(self, x_BD: Tensor, batch: Mapping[str, Tensor]) -> Terms:
        x_BD = ops.cast(x_BD, "float32")
        z_BD = x_BD * ops.rsqrt(ops.maximum(ops.sum(ops.square(x_BD), axis=1, keepdims=True), 1e-24))
        rows_BX = batch[ROWS]
        rows_B, rows_E = rows_BX[:, 0], ops.reshape(ops.transpose(rows_BX), (-1,))
        known_B = ops.cast(rows_B >= 0, "float32")
        taken_E = ops.maximum(rows_E, 0)
        vectors_EKD, labels_E = ops.take(self._bank.vectors, taken_E, axis=0), ops.take(self._bank.labels, taken_E)
        found: Terms = {}
        for name, (first, end) in self._names.items():
            count, width = end - first, z_BD.shape[1]
            bank_ED = ops.reshape(vectors_EKD[:, first:end], (-1, width))
            same, alike = contrastive_losses(
                z_BD,
                batch["label_ids"],
                rows_B,
                bank_ED,
                ops.repeat(ops.cast(labels_E, "int32"), count),
                ops.repeat(rows_E, count),
                self.contrast.temperature,
            )
            total_B = self.contrast.weight * same + self.contrast.supervised_weight * alike
            found[name] = (ops.sum(total_B * known_B), ops.sum(known_B))
        return found

    def predictions(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the task's predictions."""
        return self.student.predictions(model, batch)

    def decisions(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Any:
        """Return the task's decisions."""
        return self.student.decisions(outputs, batch)


class BankDataset(WithFeatures):
    """Batches with ROWS: each example brings its own row of the bank and its part of the further candidates.

    Args:
        dataset: of one row an example.
        bank: of its texts.
        seed: of the choice of candidates, which follows from it and the step alone.
    """

    def __init__(self, dataset: LabelledDataset, bank: Bank, seed: int):
        super().__init__(dataset)
        self._bank, self._seed = bank, seed

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return the batch of `step`."""
        batch = self._dataset.batch(step)
        texts, size = len(self._bank.labels), len(batch["input_ids"])
        own = np.array([self._bank.rows.get(key, -1) for key in content_keys(batch)], np.int32)
        each = -(-min(CANDIDATES, texts) // size)
        drawn = np.full(size * each, -1, np.int32)
        some = np.random.default_rng([self._seed, step]).permutation(texts)[: min(CANDIDATES, texts)]
        drawn[: len(some)] = some
        return {**batch, ROWS: np.concatenate([own[:, None], drawn.reshape(size, each)], axis=1)}


def bank_of(dataset: LabelledDataset, told: Mapping[str, Sequence[Any]], batch_size: int) -> Bank:
    """Return the bank of a data set of one row an example.

    Args:
        dataset: its texts and labels.
        told: models by source, each a function: batches -> `vector` float32 [B, D] of each, in their order.
        batch_size: of their passes.
    """
    rows: dict[bytes, int] = {}
    labels: list[int] = []
    places = []
    for batch in dataset.evaluation_batches(batch_size):
        keys = content_keys(batch)
        places.append([rows.setdefault(key, len(rows)) if key else -1 for key in keys])
        for place, label in zip(places[-1], batch["label_ids"].tolist(), strict=True):
            if place == len(labels):
                labels.append(label)
    columns, sources = [], []
    for name, models in told.items():
        sources.append((name, len(columns), len(columns) + len(models)))
        for predict in models:
            found: dict[int, np.ndarray] = {}
            for own, answer in zip(places, predict(dataset.evaluation_batches(batch_size)), strict=True):
                found |= {place: vector for place, vector in zip(own, answer["vector"], strict=True) if place >= 0}
            columns.append(np.stack([found[row] for row in range(len(rows))]))
    return Bank(np.stack(columns, axis=1).astype(np.float32), np.array(labels, np.int32), rows, sources)


def empty_bank(width: int, sources: Sequence[tuple[str, int]]) -> Bank:
    """Return a bank of one text that nobody has, for a run that only shows its plan.

    Args:
        width: of the vectors.
        sources: name of each and its number of models.
    """
    ends = np.cumsum([count for _, count in sources]).tolist()
    named = [(name, end - count, end) for (name, count), end in zip(sources, ends, strict=True)]
    return Bank(np.zeros((1, ends[-1], width), np.float32), np.zeros(1, np.int32), {}, named)
