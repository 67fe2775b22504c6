"""The first and the last token of an answer by a softmax over the tokens of a row each (BERT section 4.2).

Differs from BERT's script in that padding is no place for an answer: no result depends on the length of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import keras

from ground.tensors import Tensor, ops
from modeling import Computation, LanguageModel, SpanModel
from modeling.fusion import fusing
from modeling.losses import accuracy_term, cross_entropy
from modeling.randomness import seeded
from tasks.decisions import Decisions
from tasks.losses import Terms, example_weights
from tasks.regularization import Regularizer, usable

if TYPE_CHECKING:
    from modeling.config import Config

# float16 has no lower number either.
_NOWHERE = -6e4
_ENDS = ("start", "end")


class SpanTask:
    """Mean of the cross-entropies of both ends of an answer; implements `training.engine.Task`.

    `label_ids` [B, 2] are the places of its first and last token in the row: 0, which is [CLS], where the row has no
    answer, and -1 where nobody knows, which weighs nothing.

    Args:
        config: the model's.
        dropout: on the hidden states while training; BERT's script has none.
        computation: how the model is computed.
        regularizers: none that weighs anything.

    Raises:
        UsageError: a regularizer.
    """

    def __init__(
        self,
        config: Config,
        *,
        dropout: float = 0.1,
        computation: Computation = Computation(),  # noqa: B008
        regularizers: Sequence[Regularizer] = (),
    ):
        usable(regularizers, "it compares one distribution an example, and an answer has one for each of its ends")
        self.config, self.dropout, self.computation = config, dropout, computation
        self.metrics = tuple(f"{end}_accuracy" for end in _ENDS)
        self.loss_weights = dict.fromkeys(_ENDS, 0.5)

    def build_model(self) -> LanguageModel:
        """Return a new model of answers."""
        return SpanModel(self.config, self.dropout, self.computation)

    def companions(self) -> Mapping[str, keras.Model]:
        """Return no further models."""
        return {}

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Count the rows of known answers, for either end."""
        return dict.fromkeys(_ENDS, ops.sum(self._weights(batch)))

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        """Return the cross-entropies and the shares of right ends."""
        with seeded(seed), fusing():
            logits_BL2 = _within(model(batch, training=training), batch)
        weights_B = self._weights(batch)
        losses: Terms = {}
        metrics: Terms = {}
        for number, end in enumerate(_ENDS):
            logits_BL, labels_B = logits_BL2[:, :, number], ops.maximum(batch["label_ids"][:, number], 0)
            losses[end] = cross_entropy(logits_BL, labels_B, weights_B)
            metrics[f"{end}_accuracy"] = accuracy_term(logits_BL, labels_B, weights_B)
        return losses, metrics

    def decisions(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Decisions:
        """Return the first and the last token of the answer in every row [2, B], half a decision each."""
        weights_B = 0.5 * self._weights(batch)
        return Decisions(ops.transpose(_within(outputs, batch), (2, 0, 1)), ops.stack([weights_B, weights_B]))

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `start_logits` and `end_logits`, float32 [B, L]."""
        with fusing():
            logits_BL2 = _within(model(batch, training=False), batch)
        return {f"{end}_logits": logits_BL2[:, :, number] for number, end in enumerate(_ENDS)}

    def _weights(self, batch: Mapping[str, Tensor]) -> Tensor:
        return example_weights(batch) * ops.cast(batch["label_ids"][:, 0] >= 0, "float32")


def _within(outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Tensor:
    """Return the logits of both ends, float32 [B, L, 2], of which padding has next to nothing."""
    return ops.where(ops.cast(batch["input_mask"], "bool")[:, :, None], outputs["span_logits"], _NOWHERE)
