"""A score of a text or a pair of texts, linear in the pooled output, by mean squared error (BERT on STS-B)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import keras

from ground.tensors import Tensor, ops
from modeling import ClassifierModel, Computation, LanguageModel
from modeling.fusion import fusing
from modeling.randomness import seeded
from tasks.decisions import VALUE, Decisions
from tasks.losses import Terms, example_weights
from tasks.regularization import Regularizer, usable

if TYPE_CHECKING:
    from modeling.config import Config


class RegressionTask:
    """The one output of the classifier is the score; implements `training.engine.Task`.

    Args:
        config: the model's.
        classifier_dropout: on the pooled output while training.
        computation: how the model is computed.
        regularizers: none of positive weight.

    Raises:
        UsageError: a regularizer that compares distributions over classes.
    """

    def __init__(
        self,
        config: Config,
        *,
        classifier_dropout: float = 0.1,
        computation: Computation = Computation(),  # noqa: B008
        regularizers: Sequence[Regularizer] = (),
    ):
        usable(regularizers, "a regression has no distribution over classes to compare")
        self.config, self.classifier_dropout, self.computation = config, classifier_dropout, computation
        self.metrics = ("absolute_error",)
        self.loss_weights = {"squared_error": 1.0}

    def build_model(self) -> LanguageModel:
        """Return a new classifier of one class."""
        return ClassifierModel(self.config, 1, self.classifier_dropout, self.computation)

    def companions(self) -> Mapping[str, keras.Model]:
        """Return no further models."""
        return {}

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Count the examples."""
        return {"squared_error": ops.sum(example_weights(batch))}

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        """Return the squared and the absolute error."""
        with seeded(seed), fusing():
            scores_B = model(batch, training=training, scores_only=True)["logits"][:, 0]
        errors_B, weights_B = scores_B - ops.cast(batch["label_ids"], "float32"), example_weights(batch)
        count = ops.sum(weights_B)
        losses = {"squared_error": (ops.sum(ops.square(errors_B) * weights_B), count)}
        return losses, {"absolute_error": (ops.sum(ops.absolute(errors_B) * weights_B), count)}

    def decisions(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Decisions:
        """Return the score of every example."""
        return Decisions(outputs["logits"], example_weights(batch), VALUE)

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `score` float32 [B]."""
        with fusing():
            logits_B1 = model(batch, training=False, scores_only=True)["logits"]
        return {"score": ops.cast(logits_B1, "float32")[:, 0]}
