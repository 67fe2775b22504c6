"""Generation as a task: the tokens of a target given its source (PALM, Bi et al. 2020, section 2.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import keras

from data.objectives import Objective
from ground.tensors import Tensor, ops
from modeling import Computation, LanguageModel
from modeling.fusion import fusing
from modeling.losses import negative_log_likelihood
from modeling.randomness import seeded
from tasks.losses import NextTokenLoss, Settings, Terms

if TYPE_CHECKING:
    from modeling.config import Config

_OBJECTIVE = Objective(paper="Bi et al. 2020", summary="a target given its source", losses=("next_tokens",))


class GenerationTask:
    """Cross-entropy of the next token; implements `training.engine.Task`.

    Args:
        config: of a model with a decoder.
        label_smoothing: share of a label that is spread over the vocabulary, in training alone.
        computation: how the model is computed.
    """

    def __init__(
        self,
        config: Config,
        *,
        label_smoothing: float = 0.0,
        computation: Computation = Computation(),  # noqa: B008
    ):
        self.config, self.computation, self.label_smoothing = config, computation, label_smoothing
        self._loss = NextTokenLoss(_OBJECTIVE, Settings(label_smoothing=label_smoothing))
        self.loss_weights = self._loss.weights
        self.metrics = self._loss.metrics

    def build_model(self) -> LanguageModel:
        """Return a new model that scores the next token."""
        return LanguageModel(self.config, [*self._loss.heads.values()], self.computation, name="generation_model")

    def companions(self) -> Mapping[str, keras.Model]:
        """Return no further models."""
        return {}

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the number of tokens to give, from the batch alone."""
        return self._loss.normalizers(batch)

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        """Return loss and accuracy of one pass of the model."""
        with seeded(seed), fusing():
            return self._loss.terms(model(batch, training=training), batch)

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `target_loss`, a target's sum of losses without smoothing in nats, and `target_tokens`, both [B]."""
        logits_BTV = ops.cast(model(batch, training=False)["next_token_logits"], "float32")
        weights_BT = ops.cast(batch["target_mask"][:, 1:], "float32")
        loss_BT = negative_log_likelihood(logits_BTV, batch["target_ids"][:, 1:])
        return {
            "target_loss": ops.sum(loss_BT * weights_BT, axis=1),
            "target_tokens": ops.sum(weights_BT, axis=1),
        }
