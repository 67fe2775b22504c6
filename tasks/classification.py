"""Classification of a text or a pair of texts on the pooled output (BERT section 4.1), ALBERT's fine-tuning task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import keras

from ground.tensors import Tensor, ops
from modeling import ClassifierModel, Computation, LanguageModel
from modeling.fusion import fusing
from modeling.losses import accuracy_term, cross_entropy
from modeling.randomness import fold_in, seeded
from tasks.decisions import Decisions
from tasks.losses import Terms, example_weights
from tasks.regularization import Passes, Regularizer, symmetric_divergence, usable

if TYPE_CHECKING:
    from modeling.config import Config


class ClassificationTask:
    """A softmax over the labels of a row; implements `training.engine.Task`.

    Args:
        config: the model's.
        num_labels: C.
        classifier_dropout: on the pooled output while training (0.1 in BERT's and ALBERT's scripts).
        computation: how the model is computed.
        regularizers: further losses while training; one of weight 0 is left out, in evaluation all are.

    Raises:
        UsageError: a regularizer that compares distributions over classes, with fewer than two classes.
    """

    def __init__(
        self,
        config: Config,
        num_labels: int,
        *,
        classifier_dropout: float = 0.1,
        computation: Computation = Computation(),  # noqa: B008
        regularizers: Sequence[Regularizer] = (),
    ):
        alone = "a regression has no distribution over classes to compare" if num_labels < 2 else ""
        self.regularizers = usable(regularizers, alone)
        self.config, self.num_labels, self.classifier_dropout = config, num_labels, classifier_dropout
        self.computation = computation
        self.metrics = ("accuracy",)
        self.loss_weights = {"classification": 1.0} | {each.name: each.weight for each in self.regularizers}

    def build_model(self) -> LanguageModel:
        """Return a new classifier."""
        return ClassifierModel(self.config, self.num_labels, self.classifier_dropout, self.computation)

    def companions(self) -> Mapping[str, keras.Model]:
        """Return no further models."""
        return {}

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Count the examples, for every loss."""
        return dict.fromkeys(self.loss_weights, ops.sum(example_weights(batch)))

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        """Return losses and metrics; while training, regularizers add passes of the model."""

        def logits_of(key: Tensor, word_noise_BLE: Tensor | None) -> Tensor:
            with seeded(key), fusing():
                return model(batch, training=training, scores_only=True, word_noise_BLE=word_noise_BLE)["logits"]

        logits_BC = logits_of(seed, None)
        labels_B, weights_B = batch["label_ids"], example_weights(batch)
        logits: list[Tensor] = [logits_BC]
        further: Terms = {}
        for stream, regularizer in enumerate(self.regularizers, start=1):
            further[regularizer.name] = (ops.zeros(()), ops.zeros(()))
            if training:
                noise_shape = (*ops.shape(batch["input_ids"]), self.config.embedding_size)
                # The ordinary pass folds small numbers into the seed; a small number here would repeat its masks.
                key = fold_in(seed, 2**31 + stream)
                passes = Passes(logits_BC, logits_of, symmetric_divergence, self.num_labels, noise_shape, key)
                divergence_B, more = regularizer(passes)
                further[regularizer.name] = (ops.sum(divergence_B * weights_B), ops.sum(weights_B))
                logits += more
        crossed = [cross_entropy(each_BC, labels_B, weights_B) for each_BC in logits]
        losses = {"classification": (sum(total for total, _ in crossed) / len(crossed), crossed[0][1])} | further
        # Labels may be distributions [B, C].
        best_B = labels_B if len(labels_B.shape) == 1 else ops.argmax(labels_B, axis=-1)
        return losses, {"accuracy": accuracy_term(logits_BC, best_B, weights_B)}

    def decisions(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Decisions:
        """Return the label of every example."""
        return Decisions(outputs["logits"], example_weights(batch))

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `probabilities` float32 [B, C]."""
        with fusing():
            logits_BC = model(batch, training=False, scores_only=True)["logits"]
        return {"probabilities": ops.softmax(ops.cast(logits_BC, "float32"))}
