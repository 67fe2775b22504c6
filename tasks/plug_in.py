"""Classification of a text that is read beside its translation (VECO, Luo et al. 2021, its plug-in fine-tuning): each
language is classified by the features of both streams, alone and through cross-attention to the other language.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import keras
from absl.app import UsageError

from ground.tensors import Tensor, ops
from modeling import Computation, LanguageModel
from modeling.fusion import fusing
from modeling.heads import CrossedClassifierHead
from modeling.losses import accuracy_term, cross_entropy
from modeling.randomness import seeded
from tasks.decisions import Decisions
from tasks.grouped import ROW_FEATURES, grouped_weights
from tasks.losses import Terms
from tasks.regularization import Regularizer, usable

if TYPE_CHECKING:
    from modeling.config import Config


class PlugInTask:
    """Features [B, 2, L]: an example and the same one in another language; implements `training.engine.Task`.

    Both have one label and count alike, so that a pair is two examples of the loss. What is predicted is the first.

    Args:
        config: the model's.
        num_labels: C.
        classifier_dropout: in front of both layers of the head while training.
        computation: how the model is computed.
        regularizers: none of positive weight.

    Raises:
        UsageError: a model without cross-attention, or a regularizer.
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
        if not config.cross_attention:
            raise UsageError(
                f'--plug_in: a model of family "{config.family}" with cross_attention false has nothing to plug in; '
                "give a config of VECO with cross_attention true, as --bert_config_file=albert_config/veco_tiny.json"
            )
        usable(regularizers, "of two languages that read each other there is no pass of one alone to compare with")
        self.config, self.num_labels, self.classifier_dropout = config, num_labels, classifier_dropout
        self.computation = computation
        self.metrics = ("accuracy",)
        self.loss_weights = {"classification": 1.0}

    def build_model(self) -> LanguageModel:
        """Return a new classifier of two languages."""
        head = partial(CrossedClassifierHead, num_labels=self.num_labels, dropout=self.classifier_dropout)
        return LanguageModel(self.config, [head], self.computation, name="plug_in_model")

    def companions(self) -> Mapping[str, keras.Model]:
        """Return no further models."""
        return {}

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Count the examples, two a pair."""
        return dict.fromkeys(self.loss_weights, 2 * ops.sum(grouped_weights(batch)))

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        """Return the loss and the accuracy over both languages."""
        with seeded(seed), fusing():
            found = model(two_sides(batch), training=training, scores_only=True)
        labels_B, weights_B = batch["label_ids"], grouped_weights(batch)
        both = (found["logits"], found["other_logits"])
        return (
            {"classification": _summed([cross_entropy(each_BC, labels_B, weights_B) for each_BC in both])},
            {"accuracy": _summed([accuracy_term(each_BC, labels_B, weights_B) for each_BC in both])},
        )

    def decisions(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Decisions:
        """Return the label of every example in both languages, [2, B]."""
        weights_B = grouped_weights(batch)
        logits_2BC = ops.stack([outputs["logits"], outputs["other_logits"]])
        return Decisions(logits_2BC, ops.stack([weights_B, weights_B]))

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `probabilities` float32 [B, C] of the first language."""
        with fusing():
            logits_BC = model(two_sides(batch), training=False, scores_only=True)["logits"]
        return {"probabilities": ops.softmax(ops.cast(logits_BC, "float32"))}


def two_sides(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the features [B, L] of both rows of every example, of the second with `other_` before their names."""
    first = {name: batch[name][:, 0] for name in ROW_FEATURES}
    return first | {f"other_{name}": batch[name][:, 1] for name in ROW_FEATURES}


def _summed(terms: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return sum(total for total, _ in terms), sum(weight for _, weight in terms)
