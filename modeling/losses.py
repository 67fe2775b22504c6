"""Cross-entropy and accuracy as a weighted sum and its weight, so that replicas and micro-batches add up exactly."""

import numpy as np

from ground.tensors import Tensor, ops
from modeling.fusion import fused

# Logits below this are no words but rows that only pad the vocabulary.
_NO_WORD = float(np.finfo(np.float32).min) / 4


def cross_entropy(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Return the sum over positions of weight * -log p(label), and the sum of weights; float32 scalars, in nats.

    Args:
        logits: [..., C].
        labels: integer [...], or a distribution over classes, floating [..., C].
        weights: [...]; 1 everywhere by default.
        label_smoothing: share of the target spread evenly over all C classes (Szegedy et al. 2016).
    """
    logits = ops.cast(logits, "float32")
    labels = ops.convert_to_tensor(labels)
    soft = len(labels.shape) == len(logits.shape)
    weights = ops.ones(ops.shape(logits)[:-1]) if weights is None else ops.cast(weights, "float32")
    if not soft and not label_smoothing:
        return ops.sum(negative_log_likelihood(logits, labels) * weights), ops.sum(weights)
    real = ops.cast(logits > _NO_WORD, "float32")
    targets = ops.cast(labels, "float32") if soft else ops.one_hot(labels, logits.shape[-1], dtype="float32")
    if label_smoothing:
        targets = (1.0 - label_smoothing) * targets + label_smoothing * real / ops.sum(real, axis=-1, keepdims=True)
    losses = -ops.sum(targets * real * ops.log_softmax(logits), axis=-1)
    return ops.sum(losses * weights), ops.sum(weights)


def accuracy_term(logits: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return (weighted number of right arg-max predictions, weight) for logits [..., C] and labels, weights [...]."""
    return ops.sum(label_is_best(logits, labels) * weights), ops.sum(weights)


@fused
def label_is_best(logits: Tensor, labels: Tensor) -> Tensor:
    """Return float32 [...]: 1 where argmax(logits) == labels, the first of equal scores being the best.

    In one pass, for logits [..., C]:
        logits [1., 5., 5.], labels 1 -> highest 5. -> first index that has it 1 -> 1.0
    Keras's argmax on TensorFlow distinguishes -0.0 from 0.0, which makes it many times slower.
    """
    classes = ops.arange(logits.shape[-1], dtype=labels.dtype)
    highest = ops.max(logits, axis=-1, keepdims=True)
    first = ops.min(ops.where(logits == highest, classes, logits.shape[-1]), axis=-1)
    return ops.cast(first == labels, "float32")


@fused
def negative_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Return -log p(label) in nats, [...], of float32 logits [..., C] and integer labels [...]."""
    highest = ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True))
    normalizer = ops.log(ops.sum(ops.exp(logits - highest), axis=-1)) + ops.squeeze(highest, axis=-1)
    # Compared, not gathered: the comparison fuses with the sum, and its gradient needs no scatter.
    is_label = ops.arange(logits.shape[-1], dtype=labels.dtype) == ops.expand_dims(labels, axis=-1)
    return normalizer - ops.sum(ops.where(is_label, logits, 0.0), axis=-1)


@fused
def smoothed_negative_log_likelihood(logits: Tensor, labels: Tensor, label_smoothing: Tensor) -> Tensor:
    """Return the cross-entropy of labels of which a share is spread over all classes (Szegedy et al. 2016), [...].

    What `cross_entropy` sums, without a distribution [..., C] for every label:
        (1 - s) * -log p(label) + s * mean over classes of -log p = normalizer - (1 - s) * logit - s * mean logit
    Rows that only pad the vocabulary are no classes. Log-probabilities are as good as logits.

    Args:
        logits: float32 [..., C].
        labels: integer [...].
        label_smoothing: the share s, float32.
    """
    words = ops.cast(logits > _NO_WORD, "float32")
    mean = ops.sum(ops.where(logits > _NO_WORD, logits, 0.0), axis=-1) / ops.sum(words, axis=-1)
    highest = ops.stop_gradient(ops.max(logits, axis=-1, keepdims=True))
    normalizer = ops.log(ops.sum(ops.exp(logits - highest), axis=-1)) + ops.squeeze(highest, axis=-1)
    is_label = ops.arange(logits.shape[-1], dtype=labels.dtype) == ops.expand_dims(labels, axis=-1)
    label = ops.sum(ops.where(is_label, logits, 0.0), axis=-1)
    return normalizer - (1.0 - label_smoothing) * label - label_smoothing * mean
