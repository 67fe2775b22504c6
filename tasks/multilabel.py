"""Any number of labels for a text or a pair of texts: each label by itself, a sigmoid on the pooled output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import keras

from ground.tensors import Tensor, ops
from modeling import ClassifierModel, Computation, LanguageModel
from modeling.fusion import fusing
from modeling.randomness import seeded
from tasks.decisions import EACH, Decisions
from tasks.losses import Terms, example_weights
from tasks.regularization import Regularizer, usable

if TYPE_CHECKING:
    from modeling.config import Config


class MultilabelTask:
    """Binary cross-entropy, the mean over the labels of the row; implements `training.engine.Task`.

    Args:
        config: the model's.
        num_labels: C.
        threshold: probability from which a label is given, for the metric.
        classifier_dropout: on the pooled output while training.
        computation: how the model is computed.
        regularizers: none of positive weight.

    Raises:
        UsageError: a regularizer that compares distributions over classes.
    """

    def __init__(
        self,
        config: Config,
        num_labels: int,
        *,
        threshold: float = 0.5,
        classifier_dropout: float = 0.1,
        computation: Computation = Computation(),  # noqa: B008
        regularizers: Sequence[Regularizer] = (),
    ):
        usable(regularizers, "a task of several labels a text has no distribution over classes to compare")
        self.config, self.num_labels, self.threshold = config, num_labels, threshold
        self.classifier_dropout, self.computation = classifier_dropout, computation
        self.metrics = ("subset_accuracy",)
        self.loss_weights = {"labels": 1.0}

    def build_model(self) -> LanguageModel:
        """Return a new classifier."""
        return ClassifierModel(self.config, self.num_labels, self.classifier_dropout, self.computation)

    def companions(self) -> Mapping[str, keras.Model]:
        """Return no further models."""
        return {}

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Count the examples."""
        return {"labels": ops.sum(example_weights(batch))}

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        """Return the cross-entropy of the labels [B, C], and how many examples have all of them right."""
        with seeded(seed), fusing():
            logits_BC = model(batch, training=training, scores_only=True)["logits"]
        labels_BC, weights_B = ops.cast(batch["label_ids"], "float32"), example_weights(batch)
        # -log p of a label that is there is softplus(-x), of one that is not softplus(x).
        loss_B = ops.mean(ops.softplus(logits_BC) - labels_BC * logits_BC, axis=-1)
        given_BC = ops.cast(ops.sigmoid(logits_BC) >= self.threshold, "float32")
        right_B = ops.min(ops.cast(given_BC == labels_BC, "float32"), axis=-1)
        count = ops.sum(weights_B)
        return {"labels": (ops.sum(loss_B * weights_B), count)}, {
            "subset_accuracy": (ops.sum(right_B * weights_B), count)
        }

    def decisions(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Decisions:
        """Return every label of every example, by itself."""
        return Decisions(outputs["logits"], example_weights(batch), EACH)

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `probabilities` float32 [B, C], each label's own."""
        with fusing():
            logits_BC = model(batch, training=False, scores_only=True)["logits"]
        return {"probabilities": ops.sigmoid(ops.cast(logits_BC, "float32"))}
