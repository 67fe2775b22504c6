"""Pretraining as a task: masked tokens plus a sentence-pair objective (ALBERT section 3.1, BERT section 3.1).

An objective is a row of OBJECTIVES: which pairing and masking the records carry, what the pair head predicts, and the
names under which its losses are logged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops

from modeling import PretrainingModel
from modeling.fusion import fused, fusing
from modeling.losses import cross_entropy
from modeling.randomness import seeded

if TYPE_CHECKING:
    import keras

    from modeling.config import Config

Tensor = Any
Terms = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True)
class Objective:
    """What tells one pretraining method from another, given the shared body."""

    pair_loss: str  # the name under which the pair objective is logged
    pair_labels: tuple[str, ...]  # its classes in id order


OBJECTIVES: Mapping[str, Objective] = {
    "albert": Objective("sentence_order", ("in order", "swapped")),
    "bert": Objective("next_sentence", ("next", "random")),
}


class PretrainingTask:
    """Masked tokens and sentence pairs on one encoder; implements `training.engine.Task`.

    Args:
        config: the model's.
        objective: a row of OBJECTIVES.
        masked_lm_weight: weight of the masked-token loss.
        sentence_weight: weight of the sentence-pair loss.
        dtype: Keras dtype policy of the model, "float32" or "mixed_bfloat16".
        seed: of the initial weights.
        remat: recompute activations in the backward pass instead of keeping them.
    """

    def __init__(
        self,
        config: Config,
        objective: str = "albert",
        *,
        masked_lm_weight: float = 1.0,
        sentence_weight: float = 1.0,
        dtype: str = "float32",
        seed: int = 0,
        remat: bool = False,
    ):
        self.config, self.objective, self.dtype, self.seed, self.remat = (
            config,
            OBJECTIVES[objective],
            dtype,
            seed,
            remat,
        )
        self.loss_weights = {"masked_lm": masked_lm_weight, self.objective.pair_loss: sentence_weight}

    def build_model(self) -> keras.Model:
        return PretrainingModel(
            self.config,
            num_pair_labels=len(self.objective.pair_labels),
            dtype=self.dtype,
            seed=self.seed,
            remat=self.remat,
        )

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Masked tokens and examples that count; a row of padding has an `input_mask` of zeros and counts nothing."""
        return {
            "masked_lm": ops.sum(ops.cast(batch["masked_lm_weights"], "float32")),
            self.objective.pair_loss: ops.sum(example_weights(batch)),
        }

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        with seeded(seed), fusing():
            return self._terms(model(batch, training=training), batch)

    def _terms(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Terms, Terms]:
        pair = self.objective.pair_loss
        weights_BP, weights_B = ops.cast(batch["masked_lm_weights"], "float32"), example_weights(batch)
        ids_BP, labels_B = batch["masked_lm_ids"], ops.reshape(batch["next_sentence_labels"], (-1,))
        losses = {
            "masked_lm": cross_entropy(outputs["masked_lm_logits"], ids_BP, weights_BP),
            pair: cross_entropy(outputs["sentence_pair_logits"], labels_B, weights_B),
        }
        metrics = {
            "masked_lm_accuracy": accuracy_term(outputs["masked_lm_logits"], ids_BP, weights_BP),
            f"{pair}_accuracy": accuracy_term(outputs["sentence_pair_logits"], labels_B, weights_B),
        }
        return losses, metrics

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = model(batch, training=False)
        return {
            "masked_lm_ids": ops.argmax(outputs["masked_lm_logits"], axis=-1),
            "sentence_pair_probabilities": ops.softmax(ops.cast(outputs["sentence_pair_logits"], "float32")),
        }


def example_weights(batch: Mapping[str, Tensor]) -> Tensor:
    """float32 [B]: 1 for an example, 0 for a row that only fills up the batch."""
    return ops.cast(batch["input_mask"][:, 0], "float32")


def accuracy_term(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """(weighted number of right arg-max predictions, weight) for logits [..., C] and labels, weights [...]."""
    return ops.sum(label_is_best(logits, labels) * weights), ops.sum(weights)


@fused
def label_is_best(logits: Tensor, labels: Tensor) -> Tensor:
    """1 where no class scores as high as the label or, of those that do, none comes first; float32 [...].

    That is argmax(logits) == labels, in one pass: Keras's argmax on TensorFlow treats -0.0 apart, many times slower.
    """
    classes = ops.arange(logits.shape[-1], dtype=labels.dtype)
    highest = ops.max(logits, axis=-1, keepdims=True)
    first = ops.min(ops.where(logits == highest, classes, logits.shape[-1]), axis=-1)
    return ops.cast(first == labels, "float32")


def unigram_accuracy(
    training: Iterable[Mapping[str, np.ndarray]], held_out: Iterable[Mapping[str, np.ndarray]]
) -> float:
    """Share of held-out masked tokens that are the most frequent masked token of training: the floor for a model."""

    def counts(batches: Iterable[Mapping[str, np.ndarray]]) -> Counter[int]:
        total: Counter[int] = Counter()
        for batch in batches:
            total.update(batch["masked_lm_ids"][batch["masked_lm_weights"] > 0].tolist())
        return total

    ((most_frequent, _),) = counts(training).most_common(1)
    held_out_counts = counts(held_out)
    return held_out_counts[most_frequent] / max(held_out_counts.total(), 1)
