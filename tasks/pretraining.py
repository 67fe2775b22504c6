"""Pretraining as a task: masked tokens, a sentence-pair objective (ALBERT section 3.1, BERT section 3.1, StructBERT
section 2.2.2), and the order of shuffled words (StructBERT section 2.2.1) where the records hold any.

An objective is a row of OBJECTIVES: which pairing and masking the records carry, what the pair head predicts, and the
names under which its losses are logged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import keras
import numpy as np

from data.objectives import OBJECTIVES
from ground.tensors import Tensor, ops
from modeling import Computation, PretrainingModel
from modeling.fusion import fused, fusing
from modeling.losses import cross_entropy, negative_log_likelihood
from modeling.randomness import seeded

if TYPE_CHECKING:
    from modeling.config import Config

Terms = dict[str, tuple[Tensor, Tensor]]


class PretrainingTask:
    """Masked tokens, sentence pairs and word order on one encoder; implements `training.engine.Task`.

    Masked and shuffled positions are scored by the same head at once.

    Args:
        config: the model's.
        objective: a row of OBJECTIVES.
        masked_lm_weight: weight of the masked-token loss.
        sentence_weight: weight of the sentence-pair loss.
        word_order_weight: weight of the loss of shuffled words; None: the batches hold none.
        pooled: masked and shuffled tokens share one mean, so that each token weighs the same (AliceMind's sampler);
            otherwise each loss is a mean of its own (the paper).
        computation: how the model is computed.
    """

    def __init__(
        self,
        config: Config,
        objective: str = "albert",
        *,
        masked_lm_weight: float = 1.0,
        sentence_weight: float = 1.0,
        word_order_weight: float | None = None,
        pooled: bool = False,
        computation: Computation = Computation(),  # noqa: B008
    ):
        self.config, self.objective = config, OBJECTIVES[objective]
        self.computation = computation
        self.has_word_order, self.pooled = word_order_weight is not None, pooled
        self.loss_weights = {"masked_lm": masked_lm_weight}
        if word_order_weight is not None:
            self.loss_weights["word_order"] = word_order_weight
        if self.objective.label_name:
            self.loss_weights[self.objective.label_name] = sentence_weight

    def build_model(self) -> keras.Model:
        return PretrainingModel(self.config, len(self.objective.labels), self.computation)

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(f"{name}_accuracy" for name in self.loss_weights)

    def companions(self) -> Mapping[str, keras.Model]:
        return {}

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predicted tokens and examples that count; rows of padding, whose `input_mask` is zeros, count nothing."""
        weights = {name: ops.sum(weights_BP) for name, weights_BP in self._token_weights(batch).items()}
        if self.objective.label_name:
            weights[self.objective.label_name] = ops.sum(example_weights(batch))
        return weights

    def _token_weights(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What each token loss is divided by the sum of: its own weights, or those of all."""
        weights = {name: ops.cast(batch[f"{name}_weights"], "float32") for name in self._token_losses}
        return dict.fromkeys(weights, ops.concatenate([*weights.values()], axis=1)) if self.pooled else weights

    @property
    def _token_losses(self) -> tuple[str, ...]:
        return ("masked_lm", "word_order") if self.has_word_order else ("masked_lm",)

    def _by_loss(self, batch: Mapping[str, Tensor], values_BP: Tensor) -> dict[str, Tensor]:
        """Takes apart what holds all predicted positions, [B, P, ...]."""
        parts, begin = {}, 0
        for name in self._token_losses:
            end = begin + batch[f"{name}_positions"].shape[1]
            parts[name], begin = values_BP[:, begin:end], end
        return parts

    def _outputs(self, model: keras.Model, batch: Mapping[str, Tensor], *, training: bool) -> dict[str, Tensor]:
        """The model's outputs, `masked_lm_logits` those of all predicted positions, one loss behind the other."""
        return model({**batch, "scored_positions": self._together(batch, "positions")}, training=training)

    def _together(self, batch: Mapping[str, Tensor], what: str) -> Tensor:
        parts = [batch[f"{name}_{what}"] for name in self._token_losses]
        return ops.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        with seeded(seed), fusing():
            return self._terms(self._outputs(model, batch, training=training), batch)

    def _terms(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> tuple[Terms, Terms]:
        losses, metrics = {}, {}
        logits_BPV, ids_BP = outputs["masked_lm_logits"], self._together(batch, "ids")
        loss_BP = self._by_loss(batch, negative_log_likelihood(logits_BPV, ids_BP))
        right_BP = self._by_loss(batch, label_is_best(logits_BPV, ids_BP))
        for name, counted_BP in self._token_weights(batch).items():
            weights_BP = ops.cast(batch[f"{name}_weights"], "float32")
            losses[name] = ops.sum(loss_BP[name] * weights_BP), ops.sum(counted_BP)
            metrics[f"{name}_accuracy"] = ops.sum(right_BP[name] * weights_BP), ops.sum(weights_BP)
        if pair := self.objective.label_name:
            labels_B = ops.reshape(batch["next_sentence_labels"], (-1,))
            scored = outputs["sentence_pair_logits"], labels_B, example_weights(batch)
            losses[pair], metrics[f"{pair}_accuracy"] = cross_entropy(*scored), accuracy_term(*scored)
        return losses, metrics

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = self._outputs(model, batch, training=False)
        best_BP = self._by_loss(batch, ops.argmax(outputs["masked_lm_logits"], axis=-1))
        found = {f"{name}_ids": ids_BP for name, ids_BP in best_BP.items()}
        if self.objective.label_name:
            logits_BC = ops.cast(outputs["sentence_pair_logits"], "float32")
            found["sentence_pair_probabilities"] = ops.softmax(logits_BC)
        return found


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


def unchanged_share(held_out: Iterable[Mapping[str, np.ndarray]]) -> float:
    """Share of held-out shuffled words that stand where they stood: the accuracy of a model that changes nothing."""
    same = total = 0
    for batch in held_out:
        row, slot = np.nonzero(batch["word_order_weights"])
        shown = batch["input_ids"][row, batch["word_order_positions"][row, slot]]
        same += int((shown == batch["word_order_ids"][row, slot]).sum())
        total += len(row)
    return same / max(total, 1)
