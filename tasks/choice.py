"""Multiple choice: every choice is a row that the pooled output scores, a softmax over the rows of an example.

As in GPT (Radford et al. 2018, section 3.3) and BERT's SWAG (Devlin et al. 2019, section 4.4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import keras
import numpy as np

from ground.tensors import Tensor, ops
from modeling import ClassifierModel, Computation, LanguageModel
from modeling.fusion import fusing
from modeling.losses import accuracy_term, cross_entropy
from modeling.randomness import fold_in, seeded
from tasks.decisions import Decisions
from tasks.grouped import grouped_weights, real_rows, rows_of
from tasks.losses import Terms
from tasks.regularization import Passes, Regularizer, symmetric_divergence

if TYPE_CHECKING:
    from modeling.config import Config

# Of a choice that is not there: finite, so that examples without any have finite losses, and no class to any loss.
_NO_CHOICE = float(np.finfo(np.float32).min) / 2


class ChoiceTask:
    """A softmax over the choices of an example, features [B, C, L]; implements `training.engine.Task`.

    The model is a classifier of one class, as transformers has it. An example with fewer than C choices has the same
    loss as with C of its own number.

    Args:
        config: the model's.
        classifier_dropout: on the pooled output while training.
        computation: how the model is computed.
        regularizers: further losses while training; one of weight 0 is left out, in evaluation all are.
    """

    def __init__(
        self,
        config: Config,
        *,
        classifier_dropout: float = 0.1,
        computation: Computation = Computation(),  # noqa: B008
        regularizers: Sequence[Regularizer] = (),
    ):
        self.config, self.classifier_dropout, self.computation = config, classifier_dropout, computation
        self.regularizers = tuple(each for each in regularizers if each.weight)
        self.metrics = ("accuracy",)
        self.loss_weights = {"choice": 1.0} | {each.name: each.weight for each in self.regularizers}

    def build_model(self) -> LanguageModel:
        """Return a new classifier of one class."""
        return ClassifierModel(self.config, 1, self.classifier_dropout, self.computation)

    def companions(self) -> Mapping[str, keras.Model]:
        """Return no further models."""
        return {}

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Count the examples, for every loss."""
        return dict.fromkeys(self.loss_weights, ops.sum(grouped_weights(batch)))

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        """Return losses and metrics; while training, regularizers add passes of the model."""
        rows, real_BC = rows_of(batch), real_rows(batch)

        def logits_of(key: Tensor, word_noise_BLE: Tensor | None) -> Tensor:
            with seeded(key), fusing():
                return _by_example(
                    model(rows, training=training, scores_only=True, word_noise_BLE=word_noise_BLE)["logits"], real_BC
                )

        logits_BC = logits_of(seed, None)
        labels_B, weights_B = batch["label_ids"], real_BC[:, 0]
        logits: list[Tensor] = [logits_BC]
        further: Terms = {}
        for stream, regularizer in enumerate(self.regularizers, start=1):
            further[regularizer.name] = (ops.zeros(()), ops.zeros(()))
            if training:
                choices_B = ops.maximum(ops.sum(real_BC, axis=-1), 1.0)
                noise_shape = (*ops.shape(rows["input_ids"]), self.config.embedding_size)
                # As in `tasks.classification`: a small number here would repeat the masks of the ordinary pass.
                key = fold_in(seed, 2**31 + stream)
                passes = Passes(logits_BC, logits_of, symmetric_divergence, choices_B, noise_shape, key)
                divergence_B, more = regularizer(passes)
                further[regularizer.name] = (ops.sum(divergence_B * weights_B), ops.sum(weights_B))
                logits += more
        crossed = [cross_entropy(each_BC, labels_B, weights_B) for each_BC in logits]
        losses = {"choice": (sum(total for total, _ in crossed) / len(crossed), crossed[0][1])} | further
        return losses, {"accuracy": accuracy_term(logits_BC, labels_B, weights_B)}

    def decisions(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Decisions:
        """Return the choice of every example."""
        real_BC = real_rows(batch)
        return Decisions(_by_example(outputs["logits"], real_BC), real_BC[:, 0])

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `probabilities` float32 [B, C]; 0 for a choice that is not there."""
        with fusing():
            logits_R1 = model(rows_of(batch), training=False, scores_only=True)["logits"]
        return {"probabilities": ops.softmax(_by_example(logits_R1, real_rows(batch)))}


def _by_example(logits_R1: Tensor, real_BC: Tensor) -> Tensor:
    """Return the logits of the rows by example, float32 [B, C]; lower than any where there is no choice."""
    logits_BC = ops.reshape(ops.cast(logits_R1, "float32"), (-1, ops.shape(real_BC)[-1]))
    return ops.where(real_BC > 0, logits_BC, _NO_CHOICE)
