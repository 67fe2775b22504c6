"""Two towers with one encoder: texts become vectors whose cosine says how well they match (SBERT, Reimers and Gurevych
2019), learnt from graded pairs or from pairs and the other texts of the batch (Henderson et al. 2017, section 4.4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import keras

from ground.tensors import Tensor, ops
from modeling import Computation, LanguageModel
from modeling.fusion import fusing
from modeling.heads import EmbeddingHead
from modeling.losses import accuracy_term, cross_entropy
from modeling.randomness import seeded
from tasks.decisions import VALUE, Decisions
from tasks.grouped import grouped_weights, rows_of
from tasks.losses import Terms
from tasks.regularization import Regularizer, usable

if TYPE_CHECKING:
    from modeling.config import Config

_NO_TEXT = -1e30


class MatchingTask:
    """Features [B, 2, L]: text a and text b of every pair; implements `training.engine.Task`.

    With `score_range` labels are scores. Scaled to 0 for the lowest and 1 for the highest, they are what the cosine
    is to be, by squared error: SBERT's regression objective.

    Without it every pair matches, and the loss is the cross-entropy of text b among all texts b of the batch, and of
    a among all a, half each, of cosine / temperature. An example's negatives are those of its own micro-batch on its
    own device: the loss of a pair does depend on what it is computed with, but gradients are the exact ones of the
    sum over pairs of these losses. More micro-batches or devices mean fewer negatives, another loss, not an error.

    Args:
        config: the model's.
        score_range: lowest and highest score; None where all pairs match.
        temperature: by which cosines are divided.
        pooling: "mean" or "cls", see `modeling.heads.EmbeddingHead`.
        pooling_layer: whose states are pooled; -1 is the last.
        classifier_dropout: on the pooled vector while training; SBERT has none.
        computation: how the model is computed.
        regularizers: none of positive weight.

    Raises:
        UsageError: a regularizer that compares distributions over classes.
    """

    def __init__(
        self,
        config: Config,
        *,
        score_range: tuple[float, float] | None = None,
        temperature: float = 0.05,
        pooling: str = "mean",
        pooling_layer: int = -1,
        classifier_dropout: float = 0.1,
        computation: Computation = Computation(),  # noqa: B008
        regularizers: Sequence[Regularizer] = (),
    ):
        usable(regularizers, "a match of two texts has no distribution over classes to compare")
        self.config, self.computation = config, computation
        self.score_range, self.temperature = score_range, temperature
        self.pooling, self.pooling_layer = pooling, pooling_layer
        self._head = partial(EmbeddingHead, pooling=pooling, layer=pooling_layer, dropout=classifier_dropout)
        self.metrics = ("absolute_error",) if score_range else ("in_batch_accuracy",)
        self.loss_weights = {"squared_error" if score_range else "in_batch": 1.0}

    def build_model(self) -> LanguageModel:
        """Return a new encoder of texts."""
        return LanguageModel(self.config, [self._head], self.computation, name="matching_model")

    def companions(self) -> Mapping[str, keras.Model]:
        """Return no further models."""
        return {}

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Count the pairs."""
        return dict.fromkeys(self.loss_weights, ops.sum(grouped_weights(batch)))

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        """Return the loss that the row's labels ask for, and the error or the share of partners that are nearest."""
        with seeded(seed), fusing():
            a_BD, b_BD = _towers(model(rows_of(batch), training=training, scores_only=True))
        weights_B = grouped_weights(batch)
        if self.score_range:
            return _graded(a_BD, b_BD, ops.cast(batch["label_ids"], "float32"), weights_B, self.score_range)
        return in_batch(a_BD, b_BD, weights_B, self.temperature, alike(batch["input_ids"]))

    def decisions(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Decisions:
        """Return the cosine of every pair, or the partners among the batch [2, B], half a decision each."""
        a_BD, b_BD = _towers(outputs)
        weights_B = grouped_weights(batch)
        if self.score_range:
            return Decisions(ops.sum(a_BD * b_BD, axis=-1)[:, None], weights_B, VALUE)
        scores = _partner_scores(a_BD, b_BD, weights_B, self.temperature, alike(batch["input_ids"]))
        return Decisions(ops.stack(scores), ops.stack([0.5 * weights_B] * 2))

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `embedding_a` and `embedding_b`, float32 [B, D], of length 1."""
        with fusing():
            a_BD, b_BD = _towers(model(rows_of(batch), training=False, scores_only=True))
        return {"embedding_a": a_BD, "embedding_b": b_BD}


def _towers(outputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    vectors_RD = outputs["embedding"]
    vectors_B2D = ops.reshape(vectors_RD, (-1, 2, vectors_RD.shape[-1]))
    return vectors_B2D[:, 0], vectors_B2D[:, 1]


def alike(input_ids_B2L: Tensor) -> Tensor:
    """Return bool [B, B]: which other pairs have the same text a or the same text b, so that all four texts match.

    Example:
        pairs (p, q), (r, q), (s, t)  ->  the first and the second, in both directions
    """
    same_B2B = ops.all(input_ids_B2L[:, :, None, :] == ops.transpose(input_ids_B2L, (1, 0, 2))[None], axis=-1)
    others_BB = ops.logical_not(ops.eye(input_ids_B2L.shape[0], dtype="bool"))
    return ops.logical_and(ops.any(same_B2B, axis=1), others_BB)


def in_batch(
    a_BD: Tensor, b_BD: Tensor, weights_B: Tensor, temperature: float, alike_BB: Tensor
) -> tuple[Terms, Terms]:
    """Return the cross-entropy of partners among the batch in both directions, and how many a have b nearest.

    Example:
        a [1 0], [0 1]; b the same; temperature 0.5
        scores 2 0 / 0 2, of either side log(1 + exp(-2)) = 0.127 a pair
    """
    scores_BB, backwards_BB = _partner_scores(a_BD, b_BD, weights_B, temperature, alike_BB)
    partners_B = ops.arange(scores_BB.shape[0], dtype="int32")
    forth, count = cross_entropy(scores_BB, partners_B, weights_B)
    back, _ = cross_entropy(backwards_BB, partners_B, weights_B)
    metrics = {"in_batch_accuracy": accuracy_term(scores_BB, partners_B, weights_B)}
    return {"in_batch": ((forth + back) / 2, count)}, metrics


def _partner_scores(
    a_BD: Tensor, b_BD: Tensor, weights_B: Tensor, temperature: float, alike_BB: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the scores [B, B] of every text b for every a, and of every a for every b."""
    # A text that fills up the batch is nobody's negative, nor is one that matches too: it would be pushed away.
    negative_BB = ops.logical_and(weights_B[None, :] > 0, ops.logical_not(alike_BB))
    scores_BB = ops.where(negative_BB, ops.matmul(a_BD, ops.transpose(b_BD)) / temperature, _NO_TEXT)
    backwards_BB = ops.where(negative_BB, ops.matmul(b_BD, ops.transpose(a_BD)) / temperature, _NO_TEXT)
    return scores_BB, backwards_BB


def _graded(
    a_BD: Tensor, b_BD: Tensor, labels_B: Tensor, weights_B: Tensor, score_range: tuple[float, float]
) -> tuple[Terms, Terms]:
    low, high = score_range
    errors_B = ops.sum(a_BD * b_BD, axis=-1) - (labels_B - low) / (high - low)
    count = ops.sum(weights_B)
    losses = {"squared_error": (ops.sum(ops.square(errors_B) * weights_B), count)}
    return losses, {"absolute_error": (ops.sum(ops.absolute(errors_B) * weights_B), count)}
