"""Classification by words at the mask of a prompt: PET (Schick and Schütze 2021) and, with soft slots, P-Tuning (Liu et
al. 2021). The loss is (1 - a) times the cross-entropy of the labels plus a times that of hidden tokens.

PET's hidden tokens are those of the training texts themselves, in a pass of their own; the paper's are of unlabelled
ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import keras

from ground.tensors import Tensor, ops
from modeling import Computation, LanguageModel
from modeling.fusion import fusing
from modeling.losses import cross_entropy
from modeling.prompt_heads import VerbalizerHead
from modeling.randomness import fold_in, seeded
from modeling.soft_prompts import SoftPrompt
from tasks.classification import ClassificationTask
from tasks.losses import Terms
from tasks.regularization import Regularizer

if TYPE_CHECKING:
    from modeling.config import Config

HIDDEN = "auxiliary"
_STREAM = 2**31 + 2**16
"""Folded into the seed of the hidden tokens' pass; no other pass has it."""


def prompt_heads(prompt: Mapping[str, Any], encoder: str = "none") -> list[Any]:
    """Return the head of the soft slots of a prompt, if it has any."""
    return [partial(SoftPrompt, initial_ids=prompt["slots"], encoder=encoder)] if prompt["slots"] else []


class VerbalizedTask(ClassificationTask):
    """A softmax over the labels of a row by their words; implements `training.engine.Task`.

    Args:
        config: the model's.
        prompt: of the row, see `tasks.prompts.prompt`.
        auxiliary_weight: a; 0 leaves hidden tokens out.
        prompt_encoder: that makes the vectors of soft slots, a row of `modeling.soft_prompts.ENCODERS`.
        computation: how the model is computed.
        regularizers: further losses while training.
    """

    def __init__(
        self,
        config: Config,
        prompt: Mapping[str, Any],
        *,
        auxiliary_weight: float = 0.0,
        prompt_encoder: str = "none",
        computation: Computation = Computation(),  # noqa: B008
        regularizers: Sequence[Regularizer] = (),
    ):
        super().__init__(
            config, len(prompt["words"]), classifier_dropout=0.0, computation=computation, regularizers=regularizers
        )
        self.prompt, self.prompt_encoder = prompt, prompt_encoder
        if auxiliary_weight:
            self.loss_weights |= {"classification": 1.0 - auxiliary_weight, HIDDEN: auxiliary_weight}

    def build_model(self) -> LanguageModel:
        """Return a new model with the masked-LM head."""
        words = partial(
            VerbalizerHead,
            mask_id=self.prompt["mask_id"],
            num_masks=self.prompt["masks"],
            words=self.prompt["words"],
        )
        heads = [*prompt_heads(self.prompt, self.prompt_encoder), words]
        return LanguageModel(self.config, heads, self.computation, name="verbalized_model")

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Count the examples, and for the masked-LM loss the hidden tokens."""
        counts = super().normalizers(batch)
        if HIDDEN in counts:
            hides = "hidden_masked_lm_weights" in batch
            counts[HIDDEN] = ops.sum(batch["hidden_masked_lm_weights"]) if hides else ops.zeros(())
        return counts

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        """Return losses and metrics; a batch without hidden tokens has no loss of them."""
        losses, metrics = super().terms(model, batch, seed=seed, training=training)
        if HIDDEN in self.loss_weights and "hidden_ids" in batch:
            features = {
                "input_ids": batch["hidden_ids"],
                "input_mask": batch["input_mask"],
                "segment_ids": batch["segment_ids"],
                "masked_lm_positions": batch["hidden_masked_lm_positions"],
            }
            with seeded(fold_in(seed, _STREAM)), fusing():
                logits_BPV = model(features, training=training, scores_only=True)["masked_lm_logits"]
            losses[HIDDEN] = cross_entropy(logits_BPV, batch["hidden_masked_lm_ids"], batch["hidden_masked_lm_weights"])
        return losses, metrics
