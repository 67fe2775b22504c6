"""Heads that read the [MASK] of a prompt through the masked-LM head: classes by the words that stand for them (PET,
Schick and Schütze 2021, section 3.1), and by the labelled texts that are nearest (CP-Tuning, Xu et al. 2022).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ground.tensors import Tensor, ops
from modeling.body import Body
from modeling.computation import Computation, Sizes
from modeling.config import Config
from modeling.heads import MaskedLMHead, gather_positions
from modeling.variables import Initialization

_NOTHING = -1e30
_LEAST_SQUARE = 1e-24


def mask_positions(ids_BL: Tensor, mask_id: int, count: int) -> Tensor:
    """Return where the first `count` masks of every row stand, int32 [B, M]; 0 for one that is not there.

    Example:
        ids [2 7 4 4 3], mask_id 4, count 2
        is_mask 0 0 1 1 0    number 0 0 1 2 2    -> 2 3
    """
    is_mask_BL = ops.cast(ids_BL == mask_id, "int32")
    number_BL = ops.cumsum(is_mask_BL, axis=1)
    wanted_M = ops.arange(1, count + 1, dtype="int32")
    found_BML = (number_BL[:, None, :] == wanted_M[None, :, None]) & (is_mask_BL[:, None, :] > 0)
    place_L = ops.arange(ops.shape(ids_BL)[1], dtype="int32")
    return ops.sum(ops.where(found_BML, place_L[None, None, :], 0), axis=-1)


class VerbalizerHead(MaskedLMHead):
    """`logits` float32 [B, C] of the labels by their words at the masks of a prompt; see `word_scores`.

    A softmax over them is the paper's, which is restricted to the words of the labels: of words of one token and one
    word a label it is the softmax over their scores. With `masked_lm_positions` among the features the head scores the
    vocabulary there instead (auxiliary masked tokens).

    Args:
        config: graph and shapes.
        initialization: of the variables.
        computation: precision.
        body: the model's.
        mask_id: id of [MASK].
        num_masks: M, masks of a prompt.
        words: ids of the tokens of each word of each label, at most M a word.
    """

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        computation: Computation,
        body: Body,
        *,
        mask_id: int,
        num_masks: int,
        words: Sequence[Sequence[Sequence[int]]],
    ) -> None:
        super().__init__(config, initialization, computation, body)
        self.mask_id, self.num_masks = mask_id, num_masks
        self.words = words

    def __call__(
        self, outputs: Mapping[str, Any], features: Mapping[str, Tensor], body: Body, training: bool
    ) -> dict[str, Tensor]:
        """Score the labels; see `modeling.heads.Head`."""
        if "masked_lm_positions" in features:
            return super().__call__(outputs, features, body, training)
        positions_BM = mask_positions(features["input_ids"], self.mask_id, self.num_masks)
        x_BMD = gather_positions(outputs["sequence_output"], positions_BM)
        return {"logits": label_scores(self.scores(x_BMD, embeddings=body.embeddings), self.words)}

    def operations(self, sizes: Sizes, body: Body) -> int:
        """Return those of the transform and of the scores over the vocabulary, at the masks."""
        own = self.scores.transform.operations(self.num_masks)
        return own + body.embeddings.logits_operations(self.num_masks)


def label_scores(logits_BMV: Tensor, words: Sequence[Sequence[Sequence[int]]]) -> Tensor:
    """Return the scores of the labels, float32 [B, C], of the scores of all words at the masks.

    A word of k tokens has the sum of their log-probabilities at the first k masks, times K / k where the longest word
    has K: words of one length are compared by their probability, and a short one has no advantage over a long one. A
    label has the mean probability of its words.

    Example:
        words [[[5]], [[6, 7], [8]]]     K 2
        label 0    2 log p(5 at mask 0)
        label 1    log of the mean of p(6 at mask 0) p(7 at mask 1) and p(8 at mask 0)^2

    Args:
        logits_BMV: scores over the vocabulary.
        words: ids of the tokens of each word of each label.
    """
    flat = [word for of_label in words for word in of_label]
    longest = max(map(len, flat))
    ids_WK = np.array([[*word, *[0] * (longest - len(word))] for word in flat], np.int32)
    weights_WK = np.array(
        [[longest / len(word) * (k < len(word)) for k in range(longest)] for word in flat], np.float32
    )
    chances_BMV = ops.log_softmax(ops.cast(logits_BMV, "float32"))
    scores_BW = sum(ops.take(chances_BMV[:, k], ids_WK[:, k], axis=-1) * weights_WK[None, :, k] for k in range(longest))
    most = max(map(len, words))
    if most == 1:
        return scores_BW
    first = np.cumsum([0, *map(len, words)])[:-1]
    index_CN = np.array([[begin + min(n, len(each) - 1) for n in range(most)] for begin, each in zip(first, words)])  # noqa: B905
    there_CN = np.array([[n < len(each) for n in range(most)] for each in words])
    scores_BCN = ops.reshape(ops.take(scores_BW, index_CN.ravel().astype(np.int32), axis=1), (-1, len(words), most))
    summed_BC = ops.logsumexp(ops.where(there_CN[None], scores_BCN, _NOTHING), axis=-1)
    return summed_BC - np.log(there_CN.sum(axis=1)).astype(np.float32)


class Anchors(keras.layers.Layer):
    """The vectors of labelled examples, [C, A, X], none of which is trained; zeros where a class has fewer than A."""

    def __init__(self, num_labels: int, per_label: int, width: int, *, dtype: Any) -> None:
        super().__init__(dtype=dtype, name="anchors")
        self.sizes = (num_labels, per_label, width)

    def build(self, input_shape: Any = None) -> None:
        """Create `vectors`."""
        self.vectors = self.add_weight(
            shape=self.sizes, initializer="zeros", name="vectors", trainable=False, autocast=False
        )


class AnchorsHead(MaskedLMHead):
    """`logits` float32 [B, C]: the cosine of a prompt's mask to the nearest anchor of each label, times `scale`.

    The vector of a text, `prompt_embedding` float32 [B, X] of length 1, is what the masked-LM head compares with the
    word table. Of a label without any anchor the cosine is -1. With `masked_lm_positions` among the features there are
    `masked_lm_logits`, too.

    Args:
        config: graph and shapes.
        initialization: of the variables.
        computation: precision.
        body: the model's.
        mask_id: id of [MASK].
        num_labels: C.
        anchors_per_label: A.
        scale: of the cosines.
    """

    def __init__(
        self,
        config: Config,
        initialization: Initialization,
        computation: Computation,
        body: Body,
        *,
        mask_id: int,
        num_labels: int,
        anchors_per_label: int,
        scale: float,
    ) -> None:
        super().__init__(config, initialization, computation, body)
        self.mask_id, self.scale = mask_id, scale
        width = body.embeddings.sum_width
        self.anchors = Anchors(num_labels, anchors_per_label, width, dtype=computation.dtype)
        self.layers = (self.scores, self.anchors)

    def __call__(
        self, outputs: Mapping[str, Any], features: Mapping[str, Tensor], body: Body, training: bool
    ) -> dict[str, Tensor]:
        """Return embedding and logits; see `modeling.heads.Head`.

        `prompt_positions` [B, 1] say where the mask is, where there are others, too.
        """
        found = super().__call__(outputs, features, body, training) if "masked_lm_positions" in features else {}
        positions_B1 = features.get("prompt_positions")
        if positions_B1 is None:
            positions_B1 = mask_positions(features["input_ids"], self.mask_id, 1)
        x_B1D = gather_positions(outputs["sequence_output"], positions_B1)
        embedding_BX = of_length_one(self.scores.transformed(x_B1D)[:, 0])
        anchors_CAX = ops.convert_to_tensor(self.anchors.vectors)
        labels, per_label, width = self.anchors.sizes
        there_CA = ops.sum(ops.square(anchors_CAX), axis=-1) > 0
        cosines = ops.matmul(embedding_BX, ops.transpose(ops.reshape(anchors_CAX, (labels * per_label, width))))
        cosines_BCA = ops.where(there_CA[None], ops.reshape(cosines, (-1, labels, per_label)), -1.0)
        return {**found, "prompt_embedding": embedding_BX, "logits": self.scale * ops.max(cosines_BCA, axis=-1)}

    def operations(self, sizes: Sizes, body: Body) -> int:
        """Return those of the transform at the mask and of the anchors."""
        return self.scores.transform.operations(1) + 2 * int(np.prod(self.anchors.sizes))


def of_length_one(x_BX: Tensor) -> Tensor:
    """Return float32 vectors of length 1."""
    x_BX = ops.cast(x_BX, "float32")
    return x_BX * ops.rsqrt(ops.maximum(ops.sum(ops.square(x_BX), axis=-1, keepdims=True), _LEAST_SQUARE))
