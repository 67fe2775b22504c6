"""MetaKD (Pan et al. 2021): a teacher of several domains learns most from examples that are typical of all of them, and
a student learns most from what this teacher is expert in.

    teacher   typicality * (cross-entropy of the label + weight * cross-entropy of a wrong domain)
    student   (1 + typicality) / (exp((p_label - 1)^2) + 1) * distance from the teacher

Typicality is that of the released code, within each class: half the cosine with the mean of the own domain and half
that with the mean of the other domains' means. Differs from it in that texts are vectors without their padding, that a
negative typicality counts as none, and that the weight of an example is its own, where EasyNLP's port multiplies means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from ground.tensors import Tensor, ops
from modeling import Computation, LanguageModel
from modeling.computation import SCAFFOLD
from modeling.fusion import fusing
from modeling.heads import EmbeddingHead
from modeling.layers import Dense
from modeling.losses import cross_entropy
from modeling.randomness import fold_in, normal, seeded
from modeling.scaffold import scaffolded
from modeling.variables import Initialization
from tasks.distillation import TYPICALITY, StudentTask, Watched
from tasks.grouped import ROW_FEATURES
from tasks.kinds import Batch, LabelledDataset, in_order
from tasks.losses import IMPORTANCE, Terms, example_weights
from tasks.taught import WithFeatures, content_keys

if TYPE_CHECKING:
    from modeling.config import Config

NAME = "domain_corruption"
DOMAINS = "domain_ids"
_STREAM = 2**31 + 2**16  # beyond the streams of regularizers


def typicality(vectors_ND: np.ndarray, domains_N: np.ndarray, classes_N: np.ndarray) -> np.ndarray:
    """Return how typical each example is of its own domain and of the others, float64 [N], at most 1.

    An example whose class is in no other domain is measured by its own alone.

    Example: one class, domain 0 with [1 0], [0 1], domain 1 with [2 2]
        means [.5 .5] and [2 2]; [1 0]: (.707 + .707) / 2 = .707; [2 2]: (1 + 1) / 2 = 1
    """
    vectors_ND, found = vectors_ND.astype(np.float64), np.zeros(len(vectors_ND))
    for one in np.unique(classes_N):
        members = np.flatnonzero(classes_N == one)
        means = {
            domain: vectors_ND[members[domains_N[members] == domain]].mean(axis=0)
            for domain in np.unique(domains_N[members]).tolist()
        }
        for domain, own in means.items():
            rows = members[domains_N[members] == domain]
            others = [mean for name, mean in means.items() if name != domain]
            cosines = [_cosines(vectors_ND[rows], own)]
            cosines += [_cosines(vectors_ND[rows], np.mean(others, axis=0))] if others else []
            found[rows] = np.mean(cosines, axis=0)
    return found


def _cosines(vectors_ND: np.ndarray, mean_D: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors_ND, axis=1) * np.linalg.norm(mean_D)
    return vectors_ND @ mean_D / np.maximum(lengths, 1e-12)


class DomainScores(keras.layers.Layer):
    """MetaKD's domain branch: tanh(W (vector of the domain + mean of the states)) -> scores of the domains."""

    def __init__(self, config: Config, initialization: Initialization, computation: Computation, num_domains: int):
        super().__init__(dtype=computation.dtype, name=SCAFFOLD)
        width, dtype = config.hidden_size, computation.dtype
        self.vectors = Dense(num_domains, width, initialization, use_bias=False, dtype=dtype, name="domain")
        self.mixed = Dense(width, width, initialization, dtype=dtype, name="mixed")
        self.scores = Dense(width, num_domains, initialization, dtype=dtype, name="scores")

    def build(self, input_shape: Any = None) -> None:
        """Build the three layers."""
        for layer in (self.vectors, self.mixed, self.scores):
            layer.build(None)

    def call(self, x_BD: Tensor, domains_BK: Tensor) -> Tensor:
        """Return float32 [B, K] of the mean states and the domains, one of K each."""
        h_BD = ops.tanh(self.mixed(x_BD + self.vectors(ops.cast(domains_BK, x_BD.dtype))))
        return ops.cast(self.scores(h_BD), "float32")


@dataclass(frozen=True)
class MetaTeaching:
    """Makes of a task that of a meta-teacher.

    Attributes:
        num_domains: K.
        weight: of the corruption of domains.
    """

    num_domains: int
    weight: float = 0.5

    def __call__(self, task: StudentTask) -> MetaTeacherTask:
        return MetaTeacherTask(task, self)


class MetaTeacherTask:
    """A task whose examples weigh by typicality and whose states forget the domain; a `training.engine.Task`.

    The domain branch learns domains that are shuffled within the batch, so that nothing of the true one helps.
    """

    def __init__(self, student: StudentTask, teaching: MetaTeaching):
        self.student, self.teaching = student, teaching
        self.loss_weights = {**student.loss_weights, NAME: teaching.weight}
        self.metrics = student.metrics

    def build_model(self) -> keras.Model:
        """Return a new model with a domain branch as its scaffold."""
        with scaffolded(partial(DomainScores, num_domains=self.teaching.num_domains)):
            return self.student.build_model()

    def companions(self) -> Mapping[str, keras.Model]:
        """Return the student's."""
        return self.student.companions()

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Count as the student does, and the weights of the examples."""
        return {**self.student.normalizers(batch), NAME: ops.sum(example_weights(batch))}

    def terms(self, model: Any, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool) -> tuple[Terms, Terms]:
        """Return the student's losses and metrics and, while training, that of shuffled domains."""
        if not training:
            losses, metrics = self.student.terms(model, batch, seed=seed, training=False)
            return {**losses, NAME: (ops.zeros(()), ops.zeros(()))}, metrics
        watched = Watched(model, scores_only=False)
        losses, metrics = self.student.terms(watched, batch, seed=seed, training=True)
        with seeded(fold_in(seed, _STREAM)):
            order_B = ops.argsort(normal((batch[DOMAINS].shape[0],), 1.0))
        wrong_B = ops.take(batch[DOMAINS], order_B, axis=0)
        domains_BK = ops.one_hot(batch[DOMAINS], self.teaching.num_domains)
        with fusing():
            mean_BD = _mean_behind_first(watched.outputs["sequence_output"], batch["input_mask"])
            scores_BK = model.scaffold(mean_BD, domains_BK)
        return {**losses, NAME: cross_entropy(scores_BK, wrong_B, example_weights(batch))}, metrics

    def predictions(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the student's predictions."""
        return self.student.predictions(model, batch)

    def decisions(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Any:
        """Return the student's decisions."""
        return self.student.decisions(outputs, batch)


def _mean_behind_first(x_BLD: Tensor, mask_BL: Tensor) -> Tensor:
    """Return the mean of the states of all tokens but the first, x_BD."""
    weights_BL1 = ops.cast(mask_BL, x_BLD.dtype)[:, 1:, None]
    return ops.sum(x_BLD[:, 1:] * weights_BL1, axis=1) / ops.maximum(ops.sum(weights_BL1, axis=1), 1.0)


class VectorTask:
    """Texts as vectors, the mean or the first of their last states; as much of `training.engine.Task` as predicts."""

    loss_weights: Mapping[str, float] = {}
    metrics = ()

    def __init__(self, config: Config, computation: Computation, pooling: str = "mean"):
        self.config, self.computation, self._pooling = config, computation, pooling

    def build_model(self) -> LanguageModel:
        """Return a new encoder of texts."""
        head = partial(EmbeddingHead, pooling=self._pooling, layer=-1, dropout=0.0)
        return LanguageModel(self.config, [head], self.computation, name="vector_model")

    def companions(self) -> Mapping[str, keras.Model]:
        """Return no further models."""
        return {}

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return nothing: nothing is learnt."""
        return {}

    def terms(self, model: Any, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool) -> tuple[dict, dict]:
        """Return nothing: nothing is learnt."""
        return {}, {}

    def predictions(self, model: Any, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `vector` float32 [B, D], of length 1."""
        features = {name: batch[name] for name in ROW_FEATURES}
        with fusing():
            return {"vector": model(features, training=False, scores_only=True)["embedding"]}


def facts_of(
    dataset: LabelledDataset, domains: list[int], classes: list[int], predict: Any, batch_size: int
) -> dict[bytes, tuple[float, int]]:
    """Return typicality, at least 0, and domain of the rows of a data set, by what a model reads of each.

    Args:
        dataset: one row an example.
        domains: of the examples.
        classes: of the examples.
        predict: batches -> what `VectorTask` predicts.
        batch_size: of its passes.
    """
    vectors = in_order(dataset, predict(dataset.evaluation_batches(batch_size)))
    found = typicality(np.stack([each["vector"] for each in vectors]), np.array(domains), np.array(classes))
    keys = [key for batch in dataset.evaluation_batches(batch_size) for key in content_keys(batch) if key]
    return {
        key: (max(float(found[row]), 0.0), domains[row])
        for key, row in zip(keys, dataset.evaluation_order().tolist(), strict=True)
    }


class DomainDataset(WithFeatures):
    """Batches with typicality, float32 [B], and for a meta-teacher `domain_ids`, int32 [B].

    Args:
        dataset: of one row an example.
        facts: typicality and domain by content.
        teaches: for a meta-teacher, whose examples weigh by typicality; else for a student.
    """

    def __init__(self, dataset: LabelledDataset, facts: Mapping[bytes, tuple[float, int]], *, teaches: bool):
        super().__init__(dataset)
        self._facts, self._teaches = facts, teaches

    def further(self, batch: Batch) -> dict[str, np.ndarray]:
        """Return what is known of the examples; zeros for what fills up."""
        known = [self._facts.get(key, (0.0, 0)) for key in content_keys(batch)]
        typical, domains = (np.array(values) for values in zip(*known, strict=True))
        found = {IMPORTANCE if self._teaches else TYPICALITY: typical.astype(np.float32)}
        return found | ({DOMAINS: domains.astype(np.int32)} if self._teaches else {})
