"""Losses of pretraining, each with the heads that it trains: masked tokens, shuffled words (StructBERT), pair labels,
next tokens (PALM), masked tokens of two texts that read each other (VECO); ERNIE-M's are in `tasks.across`.

A row of `data.objectives.OBJECTIVES` names rows of LOSSES; a paper's own loss is one more class and one more row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import keras

from data.objectives import Objective
from ground.tensors import Tensor, ops
from modeling.heads import BothSidesHead, MaskedLMHead, NextTokenHead, PairHead
from modeling.losses import (
    accuracy_term,
    cross_entropy,
    label_is_best,
    negative_log_likelihood,
    smoothed_negative_log_likelihood,
)
from modeling.model import HeadOfModel
from tasks.across import Across, AcrossLoss, BesidePseudoLoss, Pseudo

Terms = dict[str, tuple[Tensor, Tensor]]
"""name -> (weighted sum, weight); the mean is taken only after summing over micro-batches, replicas and batches."""
Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Choices of a run.

    Attributes:
        weights: of the losses, 1 by default, under the keys `masked_lm`, `word_order`, `pair`, `next_tokens` and
            `crossed`; batches hold shuffled words if and only if there is a `word_order`.
        pooled: masked and shuffled tokens share one mean, so that each token weighs the same (AliceMind's sampler);
            otherwise each loss is a mean of its own (the paper).
        label_smoothing: share of the next token's label that is spread over the vocabulary.
        across: how masked tokens are recovered from another text.
        pseudo: how sentences are written beside a text; None: none are.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    pooled: bool = False
    label_smoothing: float = 0.0
    across: Across = field(default_factory=Across)
    pseudo: Pseudo | None = None


class Loss(Protocol):
    """Losses that are computed together. All but the attributes is traced: no side effects."""

    weights: Mapping[str, float]
    """Weight of every loss by the name under which it is logged, in the order of `terms`."""
    metrics: tuple[str, ...]
    """Names of the metrics, in the order of `terms`."""
    heads: Mapping[str, HeadOfModel]
    """Constructors of the heads by the name of their variables; losses may share one."""

    def prepare(self, model: keras.Model, batch: Batch, seed: Tensor | None) -> Batch:
        """Return the batch that the model is called with; pseudo data is generated here, without a gradient.

        Args:
            model: the task's.
            batch: features.
            seed: uint32[2]; None in predictions.
        """
        ...

    def normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weight of every loss, from the batch alone."""
        ...

    def terms(self, outputs: Mapping[str, Tensor], batch: Batch) -> tuple[Terms, Terms]:
        """Return losses and metrics from the model's outputs."""
        ...

    def predictions(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return what is wanted of each example."""
        ...


class TokenLoss:
    """Cross-entropy of the original token at masked and, with a `word_order` weight, at shuffled positions.

    Both kinds of positions are joined and scored in one pass of the masked-LM head:
        masked_lm_positions [[3, 7]], word_order_positions [[5]] -> scored_positions [[3, 7, 5]]
    """

    def __init__(self, objective: Objective, settings: Settings):
        self.parts = ("masked_lm", "word_order") if "word_order" in settings.weights else ("masked_lm",)
        self.pooled = settings.pooled
        self.weights: Mapping[str, float] = {name: settings.weights.get(name, 1.0) for name in self.parts}
        self.metrics = tuple(f"{name}_accuracy" for name in self.parts)
        self.heads: Mapping[str, HeadOfModel] = {"masked_lm": MaskedLMHead}

    def prepare(self, model: keras.Model, batch: Batch, seed: Tensor | None) -> Batch:
        """Add `scored_positions`."""
        return {**batch, "scored_positions": self._joined(batch, "positions")}

    def normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """Count the predicted tokens."""
        return {name: ops.sum(weights_BP) for name, weights_BP in self._counted(batch).items()}

    def terms(self, outputs: Mapping[str, Tensor], batch: Batch) -> tuple[Terms, Terms]:
        """Score all positions at once, then sum by kind of position."""
        losses, metrics = {}, {}
        logits_BPV, ids_BP = outputs["masked_lm_logits"], self._joined(batch, "ids")
        loss_BP = self._divided(batch, negative_log_likelihood(logits_BPV, ids_BP))
        right_BP = self._divided(batch, label_is_best(logits_BPV, ids_BP))
        for name, counted_BP in self._counted(batch).items():
            weights_BP = ops.cast(batch[f"{name}_weights"], "float32")
            losses[name] = ops.sum(loss_BP[name] * weights_BP), ops.sum(counted_BP)
            metrics[f"{name}_accuracy"] = ops.sum(right_BP[name] * weights_BP), ops.sum(weights_BP)
        return losses, metrics

    def predictions(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the best token at every position, `masked_lm_ids` and `word_order_ids`."""
        best_BP = self._divided(batch, ops.argmax(outputs["masked_lm_logits"], axis=-1))
        return {f"{name}_ids": ids_BP for name, ids_BP in best_BP.items()}

    def _counted(self, batch: Batch) -> dict[str, Tensor]:
        """Return, per loss, the weights whose sum normalises it: its own, or with `pooled` those of all."""
        weights = {name: ops.cast(batch[f"{name}_weights"], "float32") for name in self.parts}
        return dict.fromkeys(weights, ops.concatenate([*weights.values()], axis=1)) if self.pooled else weights

    def _joined(self, batch: Batch, kind: str) -> Tensor:
        """Join `NAME_positions` or `NAME_ids` of all parts, [B, P]."""
        parts = [batch[f"{name}_{kind}"] for name in self.parts]
        return ops.concatenate(parts, axis=1) if len(parts) > 1 else parts[0]

    def _divided(self, batch: Batch, values_BP: Tensor) -> dict[str, Tensor]:
        """Divide the values of joined positions, [B, P, ...], into those of each part."""
        parts, begin = {}, 0
        for name in self.parts:
            end = begin + batch[f"{name}_positions"].shape[1]
            parts[name], begin = values_BP[:, begin:end], end
        return parts


class BothSidesLoss:
    """Cross-entropy of the masked tokens of two texts, each read alone and with the other in sight (VECO, section 2.2).

    Each of the four losses is a mean over the masked tokens of its text. They are scored in one pass of one head:
        scored   [first alone, second alone, first with the second in sight, second with the first], P positions each
    """

    parts: Mapping[str, str] = {
        "masked_lm": "masked_lm",
        "other_masked_lm": "other_masked_lm",
        "crossed": "masked_lm",
        "other_crossed": "other_masked_lm",
    }
    """Loss -> the list of the batch with its labels, in the order of `modeling.heads.SIDES_SCORED`."""

    def __init__(self, objective: Objective, settings: Settings):
        given = settings.weights
        alone, crossed = given.get("masked_lm", 1.0), given.get("crossed", 1.0)
        self.weights: Mapping[str, float] = {name: crossed if "crossed" in name else alone for name in self.parts}
        self.metrics = tuple(f"{name}_accuracy" for name in self.parts)
        self.heads: Mapping[str, HeadOfModel] = {"masked_lm": BothSidesHead}

    def prepare(self, model: keras.Model, batch: Batch, seed: Tensor | None) -> Batch:
        """Return the batch as it is."""
        return batch

    def normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """Count the predicted tokens of each text."""
        return {name: ops.sum(ops.cast(batch[f"{labels}_weights"], "float32")) for name, labels in self.parts.items()}

    def terms(self, outputs: Mapping[str, Tensor], batch: Batch) -> tuple[Terms, Terms]:
        """Score all positions at once, then sum by text and stream."""
        losses, metrics, totals = {}, {}, self.normalizers(batch)
        logits_BPV = outputs["masked_lm_logits"]
        ids_BP = ops.concatenate([batch[f"{labels}_ids"] for labels in self.parts.values()], axis=1)
        loss_BP = self._divided(batch, negative_log_likelihood(logits_BPV, ids_BP))
        right_BP = self._divided(batch, label_is_best(logits_BPV, ids_BP))
        for name, labels in self.parts.items():
            weights_BP = ops.cast(batch[f"{labels}_weights"], "float32")
            losses[name] = ops.sum(loss_BP[name] * weights_BP), totals[name]
            metrics[f"{name}_accuracy"] = ops.sum(right_BP[name] * weights_BP), totals[name]
        return losses, metrics

    def predictions(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the best token at every masked position, `NAME_ids` of each loss."""
        best_BP = self._divided(batch, ops.argmax(outputs["masked_lm_logits"], axis=-1))
        return {f"{name}_ids": ids_BP for name, ids_BP in best_BP.items()}

    def _divided(self, batch: Batch, values_BP: Tensor) -> dict[str, Tensor]:
        """Divide the values of all scored positions into those of each loss."""
        parts, begin = {}, 0
        for name, labels in self.parts.items():
            end = begin + batch[f"{labels}_positions"].shape[1]
            parts[name], begin = values_BP[:, begin:end], end
        return parts


class PairLoss:
    """Cross-entropy of the label of a pair of segments, logged under the objective's `label_name`."""

    def __init__(self, objective: Objective, settings: Settings):
        self.name = objective.label_name
        self.weights: Mapping[str, float] = {self.name: settings.weights.get("pair", 1.0)}
        self.metrics = (f"{self.name}_accuracy",)
        self.heads: Mapping[str, HeadOfModel] = {"sentence_pair": partial(PairHead, num_labels=len(objective.labels))}

    def prepare(self, model: keras.Model, batch: Batch, seed: Tensor | None) -> Batch:
        """Return the batch as it is."""
        return batch

    def normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """Count the examples; rows of padding, whose `input_mask` is zeros, count nothing."""
        return {self.name: ops.sum(example_weights(batch))}

    def terms(self, outputs: Mapping[str, Tensor], batch: Batch) -> tuple[Terms, Terms]:
        """Score the label of every example."""
        labels_B = ops.reshape(batch["next_sentence_labels"], (-1,))
        scored = outputs["sentence_pair_logits"], labels_B, example_weights(batch)
        return {self.name: cross_entropy(*scored)}, {f"{self.name}_accuracy": accuracy_term(*scored)}

    def predictions(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return `sentence_pair_probabilities` float32 [B, C]."""
        logits_BC = ops.cast(outputs["sentence_pair_logits"], "float32")
        return {"sentence_pair_probabilities": ops.softmax(logits_BC)}


class NextTokenLoss:
    """Cross-entropy of every token of a target, given the source and the tokens before it (PALM, Bi et al. 2020).

    The decoder reads `target_ids` [CLS] t1 t2 [SEP] without the last column; the labels are those without the first:
        read [CLS] t1 t2, labels t1 t2 [SEP]
    """

    def __init__(self, objective: Objective, settings: Settings):
        self.label_smoothing = settings.label_smoothing
        self.weights: Mapping[str, float] = {"next_tokens": settings.weights.get("next_tokens", 1.0)}
        self.metrics: tuple[str, ...] = ("next_tokens_accuracy",)
        self.heads: Mapping[str, HeadOfModel] = {"next_tokens": NextTokenHead}

    def prepare(self, model: keras.Model, batch: Batch, seed: Tensor | None) -> Batch:
        """Return the batch as it is."""
        return batch

    def normalizers(self, batch: Batch) -> dict[str, Tensor]:
        """Count the tokens to give, the end among them."""
        return {"next_tokens": ops.sum(self._labels(batch)[1])}

    def terms(self, outputs: Mapping[str, Tensor], batch: Batch) -> tuple[Terms, Terms]:
        """Score every position of the decoder."""
        logits_BTV = ops.cast(outputs["next_token_logits"], "float32")
        labels_BT, weights_BT = self._labels(batch)
        if self.label_smoothing:
            share = ops.convert_to_tensor(self.label_smoothing, "float32")
            loss_BT = smoothed_negative_log_likelihood(logits_BTV, labels_BT, share)
        else:
            loss_BT = negative_log_likelihood(logits_BTV, labels_BT)
        right_BT, total = label_is_best(logits_BTV, labels_BT), ops.sum(weights_BT)
        return (
            {"next_tokens": (ops.sum(loss_BT * weights_BT), total)},
            {"next_tokens_accuracy": (ops.sum(right_BT * weights_BT), total)},
        )

    def predictions(self, outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the best token behind every position, `next_token_ids` [B, T]."""
        return {"next_token_ids": ops.argmax(outputs["next_token_logits"], axis=-1)}

    def _labels(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return labels [B, T] and their weights, 1 for a token and 0 for padding."""
        return batch["target_ids"][:, 1:], ops.cast(batch["target_mask"][:, 1:], "float32")


LOSSES: Mapping[str, Callable[[Objective, Settings], Loss]] = {
    "masked_lm": TokenLoss,
    "both_sides": BothSidesLoss,
    "pair": PairLoss,
    "next_tokens": NextTokenLoss,
    "across": AcrossLoss,
    "beside_pseudo": BesidePseudoLoss,
}


IMPORTANCE = "importance"
"""Feature of a batch whose examples do not weigh alike, float32 [B]."""


def example_weights(batch: Batch) -> Tensor:
    """Return float32 [B]: 1 for an example, 0 for a row that only fills up the batch; or what IMPORTANCE says."""
    weights_B = ops.cast(batch["input_mask"][:, 0], "float32")
    return weights_B * batch[IMPORTANCE] if IMPORTANCE in batch else weights_B
