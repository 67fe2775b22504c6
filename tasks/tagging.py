"""Tags of tokens by a softmax over each hidden state (BERT section 5.3), as for named entities; no CRF."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import keras

from ground.tensors import Tensor, ops
from modeling import Computation, LanguageModel, TaggerModel
from modeling.fusion import fusing
from modeling.losses import accuracy_term, cross_entropy
from modeling.randomness import seeded
from tasks.decisions import Decisions
from tasks.losses import Terms
from tasks.regularization import Regularizer, usable

if TYPE_CHECKING:
    from modeling.config import Config


class TaggingTask:
    """Cross-entropy of the tags of the tokens that have one; implements `training.engine.Task`.

    Args:
        config: the model's.
        num_tags: C.
        dropout: on the hidden states while training.
        computation: how the model is computed.
        regularizers: none that weighs anything.

    Raises:
        UsageError: a regularizer.
    """

    def __init__(
        self,
        config: Config,
        num_tags: int,
        *,
        dropout: float = 0.1,
        computation: Computation = Computation(),  # noqa: B008
        regularizers: Sequence[Regularizer] = (),
    ):
        usable(regularizers, "it compares one distribution an example, and a tagged text has one a token")
        self.config, self.num_tags, self.dropout, self.computation = config, num_tags, dropout, computation
        self.metrics = ("accuracy",)
        self.loss_weights = {"tagging": 1.0}

    def build_model(self) -> LanguageModel:
        """Return a new tagger."""
        return TaggerModel(self.config, self.num_tags, self.dropout, self.computation)

    def companions(self) -> Mapping[str, keras.Model]:
        """Return no further models."""
        return {}

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Count the tokens that have a tag."""
        return {"tagging": ops.sum(ops.cast(batch["label_weights"], "float32"))}

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        """Return the cross-entropy and the share of right tags."""
        with seeded(seed), fusing():
            logits_BLC = model(batch, training=training)["tagger_logits"]
        labels_BL, weights_BL = batch["label_ids"], ops.cast(batch["label_weights"], "float32")
        loss = cross_entropy(logits_BLC, labels_BL, weights_BL)
        return {"tagging": loss}, {"accuracy": accuracy_term(logits_BLC, labels_BL, weights_BL)}

    def decisions(self, outputs: Mapping[str, Tensor], batch: Mapping[str, Tensor]) -> Decisions:
        """Return the tag of every token that has one."""
        return Decisions(outputs["tagger_logits"], ops.cast(batch["label_weights"], "float32"))

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `log_probabilities` float32 [B, L, C] of the tags."""
        with fusing():
            logits_BLC = model(batch, training=False)["tagger_logits"]
        return {"log_probabilities": ops.log_softmax(logits_BLC)}
