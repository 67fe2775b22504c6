"""CP-Tuning (Xu et al. 2022): texts are told apart by their vectors at the mask of a soft prompt, with a pairwise
cost-sensitive contrastive loss (PCCL); labels need no words.

PCCL is the code's that was released with EasyNLP, the masked-LM loss beside it the article's, which that code never
computes. Class identity is the label here; there it was the first token of a word.
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
from modeling.prompt_heads import AnchorsHead
from modeling.randomness import seeded
from tasks.losses import Terms, example_weights
from tasks.regularization import Regularizer, usable
from tasks.verbalized import HIDDEN, prompt_heads

if TYPE_CHECKING:
    from modeling.config import Config

MARGIN, SCALE, COST = 0.4, 64.0, 1.0
_NO_PAIR = -1e30


def contrastive_loss(
    vectors_BX: Tensor,
    labels_B: Tensor,
    weights_B: Tensor,
    *,
    margin: float = MARGIN,
    scale: float = SCALE,
    cost: float = COST,
) -> Tensor:
    """Return PCCL of a batch, a float32 scalar; 0 where no two examples are alike, or none differ.

    Over all pairs with cosine s, those of one label p, the others n:
        a_p = max(0, 1 + margin - s_p) / cost    a_n = max(0, s_n + margin)    without a gradient
        softplus(logsumexp_n[scale a_n (s_n - margin)] + logsumexp_p[-scale a_p (s_p - 1 + margin)])

    Example:
        margin 0.4, scale 64: s_p 0.9, 0.6, 0.2 give the exponents -9.6, 0, 30.72; s_n 0.9, 0.4, 0.2 give 41.6, 0, -7.68

    Args:
        vectors_BX: of length 1.
        labels_B: integer.
        weights_B: 0 for rows that only fill up the batch.
        margin: m.
        scale: of the exponents.
        cost: k, by which the weight of pairs of one label is divided.
    """
    cosines_BB = ops.matmul(vectors_BX, ops.transpose(vectors_BX))
    places_B = ops.arange(ops.shape(labels_B)[0], dtype="int32")
    is_pair_BB = (places_B[:, None] < places_B[None, :]) & (weights_B[:, None] > 0) & (weights_B[None, :] > 0)
    alike_BB = labels_B[:, None] == labels_B[None, :]
    fixed_BB = ops.stop_gradient(cosines_BB)
    near_BB = -scale / cost * ops.relu(1.0 + margin - fixed_BB) * (cosines_BB - (1.0 - margin))
    far_BB = scale * ops.relu(fixed_BB + margin) * (cosines_BB - margin)
    near, far = (
        ops.logsumexp(ops.where(is_pair_BB & chosen_BB, exponents_BB, _NO_PAIR))
        for chosen_BB, exponents_BB in ((alike_BB, near_BB), (ops.logical_not(alike_BB), far_BB))
    )
    return ops.softplus(near + far)


class ContrastiveTask:
    """Vectors of texts by the labels of a row; implements `training.engine.Task`.

    The loss is that of the pairs of a micro-batch on its device, counted by its examples; more micro-batches or devices
    mean fewer pairs, another loss, not an error. A text has the label of the anchor that is nearest to it.

    Args:
        config: the model's.
        num_labels: C.
        prompt: of the row, see `tasks.prompts.prompt`.
        auxiliary_weight: of the masked-LM loss; 0 leaves it out.
        computation: how the model is computed.
        regularizers: none of positive weight.

    Raises:
        UsageError: a regularizer that compares distributions over classes.
    """

    def __init__(
        self,
        config: Config,
        num_labels: int,
        prompt: Mapping[str, Any],
        *,
        auxiliary_weight: float = 0.0,
        computation: Computation = Computation(),  # noqa: B008
        regularizers: Sequence[Regularizer] = (),
    ):
        usable(regularizers, "--method=cp_tuning learns from pairs, it has no distribution over classes to compare")
        self.config, self.num_labels, self.prompt, self.computation = config, num_labels, prompt, computation
        self.metrics = ()
        self.loss_weights = {"contrastive": 1.0} | ({HIDDEN: auxiliary_weight} if auxiliary_weight else {})

    def build_model(self) -> LanguageModel:
        """Return a new model with the masked-LM head and anchors."""
        head = partial(
            AnchorsHead,
            mask_id=self.prompt["mask_id"],
            num_labels=self.num_labels,
            anchors_per_label=max(1, self.prompt["anchors"]),
            scale=SCALE,
        )
        return LanguageModel(
            self.config, [*prompt_heads(self.prompt), head], self.computation, name="contrastive_model"
        )

    def companions(self) -> Mapping[str, keras.Model]:
        """Return no further models."""
        return {}

    def normalizers(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Count the examples and the hidden tokens."""
        counts = {"contrastive": ops.sum(example_weights(batch))}
        if HIDDEN in self.loss_weights:
            hides = "masked_lm_weights" in batch
            counts[HIDDEN] = ops.sum(batch["masked_lm_weights"]) if hides else ops.zeros(())
        return counts

    def terms(
        self, model: keras.Model, batch: Mapping[str, Tensor], *, seed: Tensor, training: bool
    ) -> tuple[Terms, Terms]:
        """Return the losses of the pairs and of the hidden tokens."""
        with seeded(seed), fusing():
            found = model(batch, training=training, scores_only=True)
        weights_B = example_weights(batch)
        count = ops.sum(weights_B)
        loss = contrastive_loss(found["prompt_embedding"], batch["label_ids"], weights_B)
        losses: Terms = {"contrastive": (loss * count, count)}
        if HIDDEN in self.loss_weights and "masked_lm_logits" in found:
            losses[HIDDEN] = cross_entropy(
                found["masked_lm_logits"], batch["masked_lm_ids"], batch["masked_lm_weights"]
            )
        return losses, {}

    def predictions(self, model: keras.Model, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return `probabilities` float32 [B, C], and the vectors `prompt_embedding` [B, X]."""
        with fusing():
            found = model(batch, training=False, scores_only=True)
        return {
            "probabilities": ops.softmax(ops.cast(found["logits"], "float32")),
            "prompt_embedding": found["prompt_embedding"],
        }
